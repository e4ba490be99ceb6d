//! What happens: to production, on a branch by several people and programs, and to production meanwhile.

use std::io::Write as _;
use std::process::Stdio;

use ardent_tests::pg_program;

/// What production holds.
pub const PRODUCTION: &[&str] = &[
    "create role clerk login",
    "create role analyst login",
    "create role migrator login",
    "create table customers (id int primary key, name text not null, email text not null, tier text not null default 'basic')",
    "insert into customers select n, 'customer ' || n, 'c' || n || '@example.com' from generate_series(1, 50) n",
    // The same as that of 12, but for its case.
    "update customers set email = 'C12@example.com' where id = 37",
    "create table products (id int primary key, title text, stock int not null, constraint products_stock check (stock >= 0))",
    "insert into products select n, 'product ' || n, 100 from generate_series(1, 10) n",
    "create table orders (id serial primary key, customer_id int not null references customers, product_id int not null references products,
       quantity int not null, state text not null default 'open')",
    "insert into orders (customer_id, product_id, quantity) select n % 40 + 1, n % 10 + 1, n % 3 + 1 from generate_series(1, 100) n",
    "create table visits (customer_id int, page text)",
    "grant select on all tables in schema public to analyst",
    "grant select, insert, update, delete on all tables in schema public to clerk",
    "grant usage on all sequences in schema public to clerk",
    "grant create on schema public to migrator",
    "alter table customers owner to migrator",
    "vacuum analyze",
];

/// What production does while the branch is worked on.
pub const MEANWHILE: &[&str] = &[
    // In the branch's way.
    "update products set stock = 500 where id = 3",
    "update customers set tier = 'gold' where id = 25",
    "delete from customers where id = 45",
    "insert into orders (customer_id, product_id, quantity) values (50, 1, 7)",
    "create index customers_tier on customers (tier, id)",
    // Not in its way: another column, and the same value.
    "update customers set name = 'Twelve' where id = 12",
    "update customers set tier = 'silver' where id = 20",
];

/// The migration as it was written first.
pub const FAILED: &[&str] = &[
    "set lock_timeout = '5s'",
    "begin",
    "alter table customers add column email_key text",
    "update customers set email_key = lower(email)",
    "create unique index customers_email_key on customers (email_key)",
    "alter table customers alter column email_key set not null",
    "comment on column customers.email_key is 'for look-ups'",
    "commit",
];

/// What has to be done before it.
pub const MEND: &str = "update customers set email = 'c37@example.com' where id = 37";

/// One session.
pub struct Visit {
    /// Its `application_name`.
    pub application: &'static str,
    /// The role that logs in.
    pub role: &'static str,
    /// What it runs, one after the other, whatever fails.
    pub statements: Vec<String>,
}

impl Visit {
    fn new<T: ToString>(application: &'static str, role: &'static str, statements: &[T]) -> Visit {
        Visit { application, role, statements: statements.iter().map(T::to_string).collect() }
    }

    /// Runs it to its end.
    pub fn run(&self, url: &str) {
        let mut psql = pg_program("psql")
            .args(["-Xq", "-d", url])
            .env("PGAPPNAME", self.application)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql can be run");
        let script: String = self.statements.iter().map(|statement| format!("{statement};\n")).collect();
        psql.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("psql reads");
        assert!(psql.wait().expect("a child can be waited for").success(), "the session did not come to its end");
    }
}

/// The sessions, in order: 200 statements.
pub fn visits() -> Vec<Visit> {
    vec![
        checkout(),
        report(13, &["update customers set tier = 'gold' where id = 1", "select stock / (id - id) from products"]),
        Visit::new("migrate", "migrator", FAILED),
        agent(),
        Visit::new("migrate", "migrator", FAILED),
        report(10, &[]),
        owner(),
    ]
}

fn checkout() -> Visit {
    let order = |n: u32| {
        let product = n % 10 + 1;
        [
            "begin".to_owned(),
            format!("insert into orders (customer_id, product_id, quantity) values ({n}, {product}, 1)"),
            format!("update products set stock = stock - 1 where id = {product}"),
            "commit".to_owned(),
        ]
    };
    Visit::new("checkout", "clerk", &(1..=20).flat_map(order).collect::<Vec<_>>())
}

fn report(reads: u32, failing: &[&str]) -> Visit {
    let read = |n| format!("select count(*), sum(quantity) from orders where product_id = {n}");
    let statements: Vec<String> = (1..=reads).map(read).chain(failing.iter().map(|&text| text.to_owned())).collect();
    Visit::new("report", "analyst", &statements)
}

fn agent() -> Visit {
    let mut statements: Vec<String> =
        vec!["select id, email from customers where lower(email) = 'c12@example.com'".into(), MEND.into()];
    statements.extend((11..=30).map(|n| format!("update customers set tier = 'silver' where id = {n}")));
    let others = [
        "update customers set tier = 'silver' where id = 45",
        "begin",
        "update orders set state = 'lost' where id < 50",
        "rollback",
        "begin",
        "update orders set state = 'shipped' where id = 17",
        "savepoint half",
        "delete from orders where customer_id = 5",
        "rollback to half",
        "update orders set state = 'packed' where id = 18",
        "commit",
        "delete from orders where id = 30",
        "insert into orders (id, customer_id, product_id, quantity) values (17, 1, 1, 1)",
        "update products set stock = stock - 1000 where id = 4",
    ];
    statements.extend(others.map(str::to_owned));
    statements.extend((1..=20).map(|n| format!("insert into visits values ({n}, 'home')")));
    let others = [
        "delete from visits where customer_id > 15",
        "update orders set state = 'delivered' where id = 17",
        "selec count(*) from orders",
        "select count(*) from orders where state = 'delivered'",
    ];
    statements.extend(others.map(str::to_owned));
    Visit::new("agent-7", "clerk", &statements)
}

fn owner() -> Visit {
    let statements = [
        "set role clerk",
        "update orders set state = 'returned' where id = 60",
        "reset role",
        "create view open_orders as select * from orders where state = 'open'",
        "grant select on open_orders to analyst",
        "create index customers_tier on customers (tier)",
        "alter table products rename column title to name",
        "do $$ begin update products set name = upper(name) where id = 9; end $$",
        "create table notes (id int primary key, body text)",
        "insert into notes values (1, 'first')",
        "insert into notes values (2, 'second')",
        "select nextval('orders_id_seq')",
        "analyze customers",
        "begin",
        "truncate orders",
        "rollback",
        "select count(*) from open_orders",
        "delete from notes where id = 2",
        "update notes set body = 'second thoughts' where id = 1",
    ];
    Visit::new("psql", "postgres", &statements)
}
