create table plain (id serial primary key, a text, b int);
insert into plain (a, b) select 'row ' || i, i from generate_series(1, 20000) i;
create index on plain (b);
create table toasted (id int primary key, t text);
insert into toasted select i, string_agg(md5((i * 100 + j)::text), '') from generate_series(1, 50) i, generate_series(1, 200) j group by i;
create table prepared (a text);
create unlogged table unlogged_before (a int primary key);
insert into unlogged_before select generate_series(1, 1000);
create table searched (id int, words text[], place point, area int4range, tree text, day int);
insert into searched select i, array['w' || i % 97, 'v' || i % 31, 'u' || i], point(i % 173, i % 211), int4range(i, i + 10), md5(i::text), i / 10 from generate_series(1, 4000) i;
create index on searched using gin (words);
create index on searched using gist (place);
create index on searched using gist (area);
create index on searched using spgist (tree);
create index on searched using spgist (place);
create index on searched using hash (id);
create index on searched using brin (day) with (pages_per_range = 4, autosummarize = off);
create table dropped_later (a int);
insert into dropped_later select generate_series(1, 5000);
create table cut_later (a int, b text);
insert into cut_later select i, repeat('x', 200) from generate_series(1, 30000) i;
;;
vacuum analyze
;;
create tablespace space_before location ''
;;
create table in_space (a int) tablespace space_before; insert into in_space select generate_series(1, 1000);
;;
begin; insert into prepared values ('before kept'); prepare transaction 'before kept'
;;
begin; insert into prepared values ('before committed'); create table made_by_prepared (a int); prepare transaction 'before committed'
;;
create database old_database
;;
\c old_database
;;
create table in_old as select * from generate_series(1, 3000) a
