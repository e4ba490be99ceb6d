insert into searched select i, array['w' || i % 97, 'x' || i], point(i % 97, i % 89), int4range(i, i + 5), md5(i::text), i / 10 from generate_series(4001, 10000) i
;;
update searched set words = words || 'new'::text, place = point(id, 1), tree = 'a' || tree where id % 9 = 0
;;
delete from searched where id % 4 = 1
;;
vacuum searched
;;
insert into searched select i, array['w' || i % 97], point(i, i), int4range(i, i + 5), repeat('common', 20) || i, i / 10 from generate_series(10001, 16000) i
;;
select brin_summarize_new_values('searched_day_idx'), brin_desummarize_range('searched_day_idx', 8), gin_clean_pending_list('searched_words_idx')
;;
delete from searched where id > 10000
;;
vacuum searched
;;
checkpoint
;;
update plain set b = b + 1 where id % 7 = 0; delete from plain where id % 11 = 0; insert into plain (a, b) select 'more', i from generate_series(1, 5000) i
;;
update plain set a = a || '!' where id < 500
;;
begin; insert into plain (a, b) values ('rolled back', 1); create table never (a int); insert into never select generate_series(1, 100); rollback
;;
do $$ begin for i in 1..40000 loop begin insert into plain (a, b) values ('sub', i); if i % 3 = 0 then raise exception 'x'; end if; exception when others then null; end; end loop; end $$
;;
vacuum plain
;;
delete from cut_later where a > 1000
;;
vacuum cut_later
;;
insert into cut_later select i, repeat('y', 300) from generate_series(1, 9000) i
;;
vacuum (freeze) cut_later
;;
update cut_later set b = 'z' where a % 5 = 0; delete from cut_later where a % 17 = 0
;;
select count(*) from cut_later where b = 'z'
;;
begin; select * from plain where id < 200 for key share; savepoint s; update plain set b = b where id < 100; select * from plain where id between 150 and 180 for update; commit
;;
begin; select a from plain where id between 300 and 900 for share; savepoint s; select a from plain where id between 300 and 900 for update; rollback to s; savepoint t; select a from plain where id between 400 and 800 for no key update; commit
;;
update plain set b = b + 1 where id between 350 and 600
;;
vacuum (freeze) plain
;;
update toasted set t = t || t where id % 2 = 0; delete from toasted where id % 5 = 0
;;
truncate dropped_later; insert into dropped_later values (1)
;;
drop table dropped_later
;;
create unlogged table unlogged_after (a int primary key, t text); insert into unlogged_after select i, 'u' from generate_series(1, 100) i
;;
create table heap_after (a int, t text); create index heap_after_a on heap_after (a); insert into heap_after select i % 1000, md5(i::text) from generate_series(1, 20000) i; cluster heap_after using heap_after_a; reindex table heap_after
;;
create materialized view view_after as select b, count(*) from plain group by b; refresh materialized view view_after
;;
alter table heap_after add column c int default 5; alter table heap_after alter column c type bigint
;;
create sequence counted; select nextval('counted') from generate_series(1, 100); alter sequence counted restart with 7
;;
begin; insert into prepared values ('after kept'); savepoint s; insert into prepared values ('after kept, sub'); prepare transaction 'after kept'
;;
begin; insert into prepared values ('after aborted'); create table made_and_aborted (a int); prepare transaction 'after aborted'
;;
begin; insert into prepared values ('after committed'); truncate toasted; prepare transaction 'after committed'
;;
commit prepared 'after committed'
;;
rollback prepared 'after aborted'
;;
commit prepared 'before committed'
;;
vacuum full pg_class
;;
vacuum full pg_authid
;;
checkpoint
;;
create database copied_by_wal template old_database strategy wal_log
;;
create database copied_by_files template old_database strategy file_copy
;;
create database dropped_database template old_database
;;
drop database dropped_database
;;
create database moved template old_database
;;
create tablespace space_after location ''
;;
alter database moved set tablespace space_after
;;
create table in_space_after (a int primary key) tablespace space_after; insert into in_space_after select generate_series(1, 3000)
;;
alter table in_space set tablespace space_after
;;
drop tablespace space_before
;;
\c copied_by_files
;;
insert into in_old select generate_series(1, 2000); update in_old set a = a + 1 where a < 100
;;
\c moved
;;
delete from in_old where a % 2 = 0
;;
vacuum in_old
;;
\c postgres
;;
do $$ begin for i in 1..9000 loop perform lo_create(0); end loop; end $$
;;
select lo_from_bytea(0, decode(repeat('ab', 10000), 'hex'))
;;
select pg_replication_origin_create('elsewhere'); select pg_replication_origin_advance('elsewhere', '0/ABCD')
;;
select pg_replication_origin_create('gone'); select pg_replication_origin_advance('gone', '0/AB'); select pg_replication_origin_drop('gone')
;;
select pg_logical_emit_message(true, 'test', 'message'); select pg_create_restore_point('here'); select pg_switch_wal()
;;
create temporary table temporary_data as select * from generate_series(1, 100)
;;
create type mood as enum ('sad', 'ok'); create function f() returns int language sql as 'select 1'; comment on table plain is 'the comment'
;;
analyze
;;
update plain set b = 0 where id < 50; delete from plain where id between 60 and 70
;;
create index on searched (tree)
;;
create index concurrently on searched using gin (words)
;;
create table made_later (id int primary key, words text[], place box); create index on made_later using gin (words); create index on made_later using spgist (place); create index on made_later using hash (id); create index on made_later using gist (place); create index on made_later using brin (id)
;;
insert into made_later select i, array['a' || i % 7, 'b' || i], box(point(i, i), point(i + 3, i % 50)) from generate_series(1, 8000) i
;;
delete from made_later where id % 3 <> 0
;;
vacuum made_later
;;
create unlogged table unlogged_searched (words text[], place point); create index on unlogged_searched using gin (words); create index on unlogged_searched using gist (place); create index on unlogged_searched using spgist (place); create index on unlogged_searched using hash ((place::text)); create index on unlogged_searched using brin ((place[0]))
