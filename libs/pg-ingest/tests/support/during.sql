insert into searched select i, array['w' || i % 97, 'x' || i], point(i % 97, i % 89), int4range(i, i + 5), md5(i::text), i / 10 from generate_series(4001, 5500) i
;;
update searched set words = words || 'new'::text, place = point(id, 1), tree = 'a' || tree where id % 9 = 0
;;
delete from searched where id % 4 = 1
;;
vacuum searched
;;
insert into searched select i, array['w' || i % 97], point(i, i), int4range(i, i + 5), repeat('common', 20) || i, i / 10 from generate_series(10001, 11500) i
;;
select brin_summarize_new_values('searched_day_idx'), brin_desummarize_range('searched_day_idx', 8), gin_clean_pending_list('searched_words_idx')
;;
delete from searched where id > 10000
;;
vacuum searched
;;
update plain set b = b + 1 where id % 3 = 0
;;
insert into plain (a, b) select 'during', i from generate_series(1, 2000) i
;;
delete from plain where b = 2 or id % 13 = 0
;;
vacuum plain
;;
create table short_lived (a int primary key, b text)
;;
insert into short_lived select i, repeat('s', 100) from generate_series(1, 20000) i
;;
delete from short_lived where a > 100
;;
vacuum short_lived
;;
update short_lived set b = 't'
;;
drop table short_lived
;;
truncate dropped_later
;;
insert into dropped_later select generate_series(1, 5000)
;;
create table kept_too as select * from generate_series(1, 500) a
;;
alter table kept_too rename to kept
;;
drop table kept
;;
delete from cut_later where a > 20000
;;
vacuum cut_later
;;
insert into cut_later select i, repeat('x', 200) from generate_series(20001, 30000) i
;;
update cut_later set b = 'n' where a between 19000 and 21000
;;
begin; select * from plain where id < 2000 for key share; savepoint s; update plain set b = b where id < 1000; commit
;;
checkpoint
;;
create database during_database
;;
drop database during_database
