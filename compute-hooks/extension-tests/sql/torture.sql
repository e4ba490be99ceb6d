\set ON_ERROR_STOP 0
select setseed(0.42);
set client_min_messages=warning;
-- updates / deletes on absent pages
update pgbench_accounts set abalance=aid%97 where aid%50=0;
delete from t2 where id%7=0;
insert into t2 select g, md5((g*3)::text), jsonb_build_object('k',g%77) from generate_series(300000,310000) g;
-- index builds, reindex, cluster, vacuum full over absent pages
create index t2_h2 on t2 using hash(v);
create index concurrently acc_i on pgbench_accounts(abalance);
reindex table t2;
vacuum full pgbench_branches; vacuum full pgbench_tellers;
cluster pgbench_accounts using pgbench_accounts_pkey;
vacuum (freeze, analyze) t2;
-- truncation by vacuum: delete tail and vacuum → smgrtruncate
delete from big where id>10000; vacuum big; select pg_relation_size('big');
insert into big select g, repeat(md5(g::text),60) from generate_series(20001,23000) g;
select pg_relation_size('big'), count(*), sum(id) from big;
-- truncate in tx, rollback & commit; drop; recreate
create table cp as select * from t2 where id<50000; create index on cp(id);
begin; truncate t2; rollback; select count(*) from t2;
truncate cp; insert into cp values (1,'a','{}');
drop table cp;
-- same transaction create+copy (WAL skip not at replica level) 
begin; create table sk as select * from pgbench_tellers; commit;
-- temp
create temp table tt as select * from pgbench_accounts where aid<50000; create index on tt(aid); select count(*),sum(abalance) from tt; update tt set abalance=1; drop table tt;
-- unlogged
select count(*) from ul; insert into ul select generate_series(2001,3000); create unlogged table ul2 as select * from t2; create index on ul2(id); alter table ul2 set logged; alter table pgbench_history set unlogged; alter table pgbench_history set logged;
-- create database: wal_log and file_copy
create database dw template d2; create database df template d2 strategy file_copy; 
checkpoint;
-- sequences, large objects
select nextval('sq'); select lo_from_bytea(0, decode(repeat('ab',20000),'hex')) is not null;
-- tablespace move
\! rm -rf "$SCRATCH/ts.$PGPORT"; mkdir "$SCRATCH/ts.$PGPORT"; chmod 700 "$SCRATCH/ts.$PGPORT"
\set tsdir `echo $SCRATCH/ts.$PGPORT`
create tablespace ts1 location :'tsdir';
alter table t2 set tablespace ts1; alter index pgbench_accounts_pkey set tablespace ts1;
select count(*),sum(id) from t2;
\c d2
select count(*) from pg_class; create table x(a int); insert into x values (1);
\c df
select count(*) from pg_class where relname like 'pg_%';
\c dw
select count(*) from pg_class where relname like 'pg_%';
\c postgres
drop database dw;
alter database df set tablespace ts1;
vacuum; checkpoint;
select pg_prewarm('pgbench_accounts','prefetch')>0, pg_prewarm('pgbench_accounts','read')>0, pg_prewarm('pgbench_accounts','buffer')>0;
select count(*),sum(abalance) from pgbench_accounts; 
