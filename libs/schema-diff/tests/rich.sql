create schema sales authorization owner_a;
create schema old_things;
create extension pg_trgm;
create type sales.mood as enum ('bad', 'so so', 'good');
create type sales.state as enum ('new', 'open', 'closed');
create domain sales.positive as int default 1 check (value > 0);
create type sales.address as (street text, zip varchar(10));
create type sales.span as range (subtype = float8);
create collation sales.german (provider = icu, locale = 'de');
create sequence sales.numbers increment 3 start 100;
create function sales.twice(n int) returns int language sql immutable as 'select 2 * n';
create function sales.next_number() returns bigint language sql as $$select nextval('sales.numbers')$$;
create procedure sales.work(a int default 1) language plpgsql as $$ begin null; end $$;
create aggregate sales.total(int) (sfunc = int4pl, stype = int, initcond = '0');
create table sales.customers (
    id int generated always as identity primary key, name text not null, mail text unique, mood sales.mood default 'good',
    home sales.address, age sales.positive, born date, tags text[] default '{}', twice int generated always as (2 * 5) stored,
    sort text collate "C", constraint adult check (born < '2010-01-01'));
create table sales.orders (
    id bigserial primary key, customer int references sales.customers on delete cascade, state sales.state not null default 'new',
    total numeric(10, 2) default 0, at timestamptz default now(), note text, constraint positive_total check (total >= 0));
create table sales.lines (
    order_id bigint references sales.orders deferrable initially deferred, line int, product text, amount int default sales.twice(2),
    primary key (order_id, line));
create table sales.tree (id int primary key, above int references sales.tree, label text);
create index customers_name on sales.customers using gin (name gin_trgm_ops);
create index customers_lower on sales.customers (lower(name)) where id % 2 = 0;
create unique index orders_note on sales.orders (note) include (total);
create statistics sales.orders_statistics (ndistinct, dependencies) on customer, state from sales.orders;
create table sales.events (at date not null, id bigint default nextval('sales.numbers'), note text, primary key (at, id)) partition by range (at);
create table sales.events_old partition of sales.events for values from (minvalue) to ('2026-01-01');
create table sales.events_new partition of sales.events for values from ('2026-01-01') to ('2027-01-01');
create index events_note on sales.events (note);
create table old_things.parent (a int, b text default 'x', constraint a_is_positive check (a > 0));
create table old_things.child (c int) inherits (old_things.parent);
create unlogged table old_things.scratch (n int);
create table old_things.exclusion (during tsrange, exclude using gist (during with &&));
create view sales.open_orders as select o.id, o.total, c.name from sales.orders o join sales.customers c on c.id = o.customer where o.state = 'open';
create view sales.names with (security_barrier = true) as select id, name from sales.customers;
create view sales.more_names as select name, length(name) as long from sales.names;
create materialized view sales.per_state as select state, count(*) as n from sales.orders group by state;
create unique index per_state_state on sales.per_state (state);
create function sales.log() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger log after insert or update of name on sales.customers for each row execute function sales.log();
create trigger log_orders before update on sales.orders for each row when (old.note <> new.note) execute function sales.log();
create constraint trigger late after insert on sales.lines deferrable initially deferred for each row execute function sales.log();
create trigger events_log after insert on sales.events for each row execute function sales.log();
create rule no_delete as on delete to sales.tree do instead nothing;
alter table sales.orders enable row level security;
create policy mine on sales.orders for select to reader using (customer = 1);
create policy change on sales.orders for update using (true) with check (customer > 0);
create function sales.label_of(sales.tree) returns text language sql stable begin atomic select $1.label; end;
create function sales.all_customers() returns setof sales.customers language sql stable as 'select * from sales.customers';
create cast (sales.address as text) with inout;
create operator sales.=== (function = pg_catalog.int4eq, leftarg = int, rightarg = int);
create publication orders_out for table sales.orders, sales.lines with (publish = 'insert, update');
create function sales.watch() returns event_trigger language plpgsql as $$ begin null; end $$;
create event trigger watching on ddl_command_end when tag in ('CREATE VIEW') execute function sales.watch();
grant usage on schema sales to reader, writer;
grant select on sales.customers, sales.orders to reader;
grant insert, update (note, total) on sales.orders to writer;
grant execute on function sales.twice to reader;
revoke execute on function sales.next_number() from public;
alter default privileges in schema sales grant select on tables to reader;
alter table sales.tree owner to owner_a;
comment on table sales.customers is 'who buys';
comment on column sales.customers.name is 'it''s a name';
comment on function sales.twice(int) is 'doubles';
comment on constraint adult on sales.customers is 'no children';
alter table sales.customers alter name set statistics 500, alter mail set storage external;
alter table sales.orders set (fillfactor = 70);
alter table sales.orders replica identity full;
create table only_columns (a int, b text, c date);
create table "Odd ""names" ("select" int primary key, "A b" text default 'a\b');
create table sales.templates (id int generated by default as identity (start 5), name text);
create table sales.copies (like sales.templates including identity);
create table sales.ordinals (id smallint generated always as identity, n bigint generated always as identity (maxvalue 2147483647));
