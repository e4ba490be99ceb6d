//! Applies transactions to the root branch, each exactly once.
//!
//! Transactions that come close after one another become one on the root. Its commit carries how far production's log was applied
//! (a replication origin): what was applied is not applied again, whatever is sent again after an interruption.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Statement};

use ardent_pgoutput::{Begin, Change, Commit, Message, Relation, Truncate, Update};
use ardent_types::Lsn;
use ardent_types::sql::{literal, qualified, quoted};

use crate::logical::altered::{Altered, Followed};
use crate::logical::config::RootBranch;
use crate::logical::ddl;
use crate::logical::error::{LogicalError, passes, root};
use crate::logical::relation::{Difference, RootColumn, compare, is_on_root, root_columns, shape, type_names};
use crate::logical::same_columns::SourceNumbers;
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::{LogicalState, TableState};
use crate::logical::statements::{NoStatement, Prepared, Shape};

/// Statements that are under way at the same time, and the bytes of their values.
const UNDER_WAY_MAX: usize = 512;
const UNDER_WAY_BYTES_MAX: usize = 8 << 20;
/// So many changes, or so much time, end a transaction on the root where one of production's ends.
const TOGETHER_MAX: usize = 20_000;
const TOGETHER_TIME: Duration = Duration::from_millis(200);
/// How long each of production's transactions is one on the root, once a change was refused: it may be one that passes.
pub(crate) const ONE_BY_ONE: Duration = Duration::from_secs(60);
/// Texts of statements that are kept prepared.
const PREPARED_MAX: usize = 1000;

/// What is emptied together with tables, as foreign keys lead to them: tables that are not followed, whose rows are nobody's, and
/// partitioned tables, all of whose followed partitions are emptied. Parameters: quoted names of these tables, and of those that are
/// followed.
const REACHED: &str = "
    with recursive reached (oid) as (
        select pg_catalog.to_regclass(name)::oid from unnest($1::text[]) name
        union select k.conrelid from pg_catalog.pg_constraint k join reached r on k.confrelid = r.oid where k.contype = 'f'),
    emptied (oid) as (select pg_catalog.to_regclass(name)::oid from unnest($1::text[]) name),
    followed (oid) as (select pg_catalog.to_regclass(name)::oid from unnest($2::text[]) name)
    select case when c.relkind = 'r' then 'only ' else '' end || pg_catalog.format('%I.%I', n.nspname, c.relname)
    from reached r join pg_catalog.pg_class c on c.oid = r.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where not exists (select 1 from emptied e where e.oid = r.oid) and not exists (select 1 from followed f where f.oid = r.oid)
        and not exists (select 1 from pg_catalog.pg_partition_tree(c.oid) t join followed f on f.oid = t.relid
            where not exists (select 1 from emptied e where e.oid = t.relid))";

/// What a change has found that does not name exactly one row.
const MISSING: &str = "is not on the root branch, which is therefore not equal to production";
const SEVERAL: &str = "has the key of several rows on the root branch: a column of that key is generated and not sent, or the key is not \
                       unique here";

type Running = Pin<Box<dyn Future<Output = Result<u64, tokio_postgres::Error>> + Send>>;

/// What an update or delete must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// One row of this relation.
    One(u32, &'static str),
    /// Of this relation, whatever there is.
    Any(u32),
}

struct UnderWay {
    running: Running,
    expect: Expect,
    bytes: usize,
}

/// A session on the root, with what it has prepared.
struct RootSession {
    client: Arc<Client>,
    prepared: HashMap<String, Statement>,
}

/// A transaction on the root.
struct Open {
    changes: usize,
    began: Instant,
    /// The last of production's transactions that is whole in it.
    ended: Option<Commit>,
}

/// One of production's transactions.
struct Transaction {
    begin: Begin,
    /// It is on the root already. Not known before the root is asked.
    is_known: Option<bool>,
}

/// How changes of one of production's relations are applied.
enum Target {
    /// To this table.
    Table(Arc<Shape>),
    /// It is not known what it looks like on the root: its relation message is to be looked at.
    Told(Relation),
}

/// Applies what comes.
pub(crate) struct Applier {
    url: String,
    database: String,
    origin: String,
    root: Arc<dyn RootBranch>,
    tables: HashMap<u32, TableState>,
    /// Tables that are published and not followed.
    passed_over: BTreeSet<u32>,
    session: Option<RootSession>,
    /// On production, while a transaction is open on the root and tables are looked at.
    production: Option<Arc<Client>>,
    one_by_one_until: Option<Instant>,
    /// What the root's origin says, once it was asked.
    applied: Lsn,
    targets: HashMap<u32, Target>,
    open: Option<Open>,
    transaction: Option<Transaction>,
    under_way: VecDeque<UnderWay>,
    under_way_bytes: usize,
    /// All of production's log below is on the root.
    position: Lsn,
    /// Tables were changed on the root, as production changed them.
    is_altered: bool,
}

impl Applier {
    pub fn new(url: &str, database: &str, origin: &str, root: Arc<dyn RootBranch>, state: &LogicalState) -> Self {
        Applier {
            url: url.to_owned(),
            database: database.to_owned(),
            origin: origin.to_owned(),
            root,
            tables: state.tables.iter().map(|(oid, table)| (*oid, table.clone())).collect(),
            passed_over: state.passed_over.clone(),
            session: None,
            production: None,
            one_by_one_until: None,
            applied: Lsn::INVALID,
            targets: HashMap::new(),
            open: None,
            transaction: None,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            position: Lsn::INVALID,
            is_altered: false,
        }
    }

    /// Whether tables were changed on the root since their names were told.
    pub fn is_altered(&self) -> bool {
        self.is_altered
    }

    /// Tells the names that tables have on the root, and which of their columns are which.
    pub fn tell_names(&mut self, state: &mut LogicalState) {
        for (oid, table) in &self.tables {
            if let Some(kept) = state.tables.get_mut(oid) {
                kept.schema.clone_from(&table.schema);
                kept.name.clone_from(&table.name);
                kept.columns.clone_from(&table.columns);
            }
        }
        self.is_altered = false;
    }

    /// All of production's log below is on the root.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Whether the last transaction that came is whole, so that nothing is left but to commit it.
    pub fn is_between_transactions(&self) -> bool {
        self.transaction.is_none()
    }

    /// Whether what was applied should be committed, even if more is there.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            self.one_by_one_until.is_some_and(|until| Instant::now() < until)
                || open.changes >= TOGETHER_MAX
                || open.began.elapsed() >= TOGETHER_TIME
        })
    }

    /// Each of production's transactions is one on the root for a while: what comes before a change that is refused is there then.
    pub fn apply_one_by_one(&mut self) {
        self.one_by_one_until = Some(Instant::now() + ONE_BY_ONE);
    }

    /// Production has sent all below `lsn`.
    pub fn sent(&mut self, lsn: Lsn) {
        if self.transaction.is_none() && self.open.is_none() {
            self.position = self.position.max(lsn);
        }
    }

    /// A session on the root. One that broke while nothing was under way is made anew: an idle root's Postgres is stopped.
    pub async fn session(&mut self) -> Result<Arc<Client>, LogicalError> {
        if let Some(session) = &self.session
            && (self.open.is_some() || !session.client.is_closed())
        {
            return Ok(session.client.clone());
        }
        let at = self.root.wake().await.map_err(LogicalError::Branch)?;
        let client = connect_root(&at, &self.database).await?;
        let origin = literal(&self.origin);
        let setup = format!(
            "select pg_catalog.pg_replication_origin_create({origin}) where pg_catalog.pg_replication_origin_oid({origin}) is null; \
             select pg_catalog.pg_replication_origin_session_setup({origin})"
        );
        client.batch_execute(&setup).await.map_err(root("setting up the session that applies changes"))?;
        let asked = format!("select pg_catalog.pg_replication_origin_progress({origin}, true)::text");
        let row = client.query_one(&asked, &[]).await.map_err(root("asking how far it is"))?;
        let applied = row.get::<_, Option<String>>(0).and_then(|text| text.parse().ok());
        self.applied = applied.unwrap_or(Lsn::INVALID);
        self.targets.retain(|_, target| matches!(target, Target::Told(_)));
        self.session = Some(RootSession { client: client.clone(), prepared: HashMap::new() });
        Ok(client)
    }

    /// The same, once all that is under way there has ended: what was refused is said, not what is refused because of that.
    pub async fn quiet_session(&mut self) -> Result<Arc<Client>, LogicalError> {
        self.finish_under_way(0).await?;
        self.session().await
    }

    async fn production(&mut self) -> Result<Arc<Client>, LogicalError> {
        let client = match self.production.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => Arc::new(connect_source(&self.url).await?),
        };
        self.production = Some(client.clone());
        Ok(client)
    }

    /// Takes note of which tables are followed from here on; how many they are.
    pub fn learn(&mut self, state: &LogicalState) -> usize {
        self.tables = state.tables.iter().map(|(oid, table)| (*oid, table.clone())).collect();
        self.passed_over = state.passed_over.clone();
        self.tables.len()
    }

    /// Takes note of the files that production's tables are in.
    pub fn see(&mut self, seen: &HashMap<u32, SourceNumbers>) {
        for (oid, source) in seen {
            let Some(table) = self.tables.get_mut(oid) else { continue };
            let before = table.columns.clone();
            table.columns.see(source);
            self.is_altered |= table.columns != before;
        }
    }

    /// Whether all that was applied is committed.
    pub fn is_settled(&self) -> bool {
        self.open.is_none()
    }

    /// Takes one message.
    pub async fn take(&mut self, message: Message) -> Result<(), LogicalError> {
        match message {
            Message::Begin(begin) => self.transaction = Some(Transaction { begin, is_known: None }),
            Message::Commit(commit) => self.end(commit),
            Message::Relation(relation) => {
                self.targets.insert(relation.oid, Target::Told(relation));
            }
            Message::Insert(change) => self.insert(&change).await?,
            Message::Update(update) => self.update(&update).await?,
            Message::Delete(change) => self.delete(&change).await?,
            Message::Truncate(truncate) => self.truncate(&truncate).await?,
            // Where a transaction came from does not matter, types are asked for by their OIDs, and other messages are nobody's rows.
            Message::Origin { .. } | Message::Type(_) | Message::Logical { .. } => {}
        }
        Ok(())
    }

    fn end(&mut self, commit: Commit) {
        self.transaction = None;
        match &mut self.open {
            Some(open) => open.ended = Some(commit),
            None => self.position = self.position.max(commit.end_lsn),
        }
    }

    /// Commits what was applied. Durable on a quorum when it returns.
    pub async fn commit(&mut self) -> Result<(), LogicalError> {
        let Some(open) = &self.open else { return Ok(()) };
        let Some(ended) = open.ended.filter(|_| self.transaction.is_none()) else { return Ok(()) };
        self.finish_under_way(0).await?;
        let client = self.session().await?;
        let commit = format!(
            "select pg_catalog.pg_replication_origin_xact_setup('{}', \
             timestamptz '2000-01-01 00:00:00+00' + {} * interval '1 microsecond'); commit",
            ended.end_lsn, ended.committed_us
        );
        client.batch_execute(&commit).await.map_err(root("committing changes"))?;
        self.open = None;
        self.production = None;
        self.applied = self.applied.max(ended.end_lsn);
        self.position = self.position.max(ended.end_lsn);
        Ok(())
    }

    /// The relation's table, if the change is to be applied; also sees to it that a transaction is open on the root.
    async fn target(&mut self, oid: u32) -> Result<Option<Arc<Shape>>, LogicalError> {
        self.session().await?;
        let applied = self.applied;
        let Some(transaction) = &mut self.transaction else {
            return Err(LogicalError::State("a change came outside of a transaction".into()));
        };
        let final_lsn = transaction.begin.final_lsn;
        if *transaction.is_known.get_or_insert(final_lsn < applied) {
            return Ok(None);
        }
        let Some(table) = self.tables.get(&oid) else {
            return if self.passed_over.contains(&oid) { Ok(None) } else { Err(self.unknown(oid)) };
        };
        // What the copy shows already.
        if table.copied_at.is_none_or(|copied_at| final_lsn < copied_at) {
            return Ok(None);
        }
        self.open().await?;
        if let Some(Target::Told(relation)) = self.targets.get(&oid) {
            let relation = relation.clone();
            self.look_at(relation).await?;
        }
        match self.targets.get(&oid) {
            Some(Target::Table(shape)) => Ok(Some(shape.clone())),
            _ => Err(LogicalError::State(format!("a change of relation {oid} came before the relation"))),
        }
    }

    async fn open(&mut self) -> Result<(), LogicalError> {
        match &mut self.open {
            Some(open) => open.changes += 1,
            None => {
                let client = self.session().await?;
                client.batch_execute("begin").await.map_err(root("beginning a transaction"))?;
                self.open = Some(Open { changes: 1, began: Instant::now(), ended: None });
            }
        }
        Ok(())
    }

    fn unknown(&self, oid: u32) -> LogicalError {
        let table = match self.targets.get(&oid) {
            Some(Target::Told(relation)) => format!("{}.{}", relation.schema, relation.name),
            _ => format!("with OID {oid}"),
        };
        LogicalError::TableChanged {
            table,
            change: "it was added to the publication, and its rows were never copied".into(),
        }
    }

    /// Holds a relation against the root's table, and brings over what can be.
    async fn look_at(&mut self, relation: Relation) -> Result<(), LogicalError> {
        let oid = relation.oid;
        let Some(table) = self.tables.get(&oid).cloned() else { return Err(self.unknown(oid)) };
        // What is under way is of the table as it was.
        self.finish_under_way(0).await?;
        if (&relation.schema, &relation.name) != (&table.schema, &table.name) {
            self.rename(&table, &relation).await?;
        }
        let mut same = table.columns;
        let table = &relation;
        let full_name = format!("{}.{}", table.schema, table.name);
        let changed = |change: String| LogicalError::TableChanged { table: full_name.clone(), change };
        let client = self.session().await?;
        let production = self.production().await?;
        let names = type_names(&production, &relation).await?;
        let type_name = |oid: u32| names.get(&oid).cloned();
        let mut columns = root_columns(&client, &table.schema, &table.name).await?;
        let numbers = SourceNumbers::read(&production, oid).await?;
        if let Some(why) = same.other(&relation, &numbers, &columns) {
            return Err(changed(why));
        }
        let difference = compare(&relation, &columns, type_name);
        if !difference.is_empty() {
            let (schema, name) = (table.schema.clone(), table.name.clone());
            let first = Followed { oid, schema, name, same: same.clone(), source: numbers.clone(), columns };
            columns = self.alter(&production, &client, &relation, &difference, first).await?;
            let left = compare(&relation, &columns, |oid| names.get(&oid).cloned());
            if !left.is_empty() {
                return Err(changed(format!("its columns are not those of the root branch: {left:?}")));
            }
        }
        let names: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
        same.learn(&names, &numbers, &columns);
        same.widened(&difference.retyped, &numbers, &columns);
        if let Some(table) = self.tables.get_mut(&oid)
            && table.columns != same
        {
            table.columns = same;
            self.is_altered = true;
        }
        self.targets.insert(oid, Target::Table(Arc::new(shape(&relation, &columns))));
        Ok(())
    }

    /// Alters the root's table, or the partitioned one that it belongs to, as production's was; its columns then.
    async fn alter(
        &mut self,
        production: &Client,
        client: &Client,
        relation: &Relation,
        difference: &Difference,
        first: Followed,
    ) -> Result<Vec<RootColumn>, LogicalError> {
        let changed = |table: String| move |change: String| LogicalError::TableChanged { table, change };
        let name = first.full_name();
        let altered = Altered::find(production, client, first, &self.tables).await?.map_err(changed(name))?;
        let name = altered.full_name();
        let statements = ddl::derive(production, client, relation, difference, &altered).await?;
        for statement in statements.map_err(changed(name.clone()))? {
            tracing::info!(statement, "production changed a table: the root follows");
            client.batch_execute(&statement).await.map_err(|error| match error.as_db_error() {
                Some(said) if !passes(&error) => {
                    changed(name.clone())(format!("the root branch refuses {statement} ({})", said.message()))
                }
                _ => root("altering a table")(error),
            })?;
        }
        self.is_altered = true;
        // Plans of what was prepared are of the table as it was.
        if let Some(session) = &mut self.session {
            session.prepared.clear();
        }
        for (oid, same) in altered.learned(client, relation, &difference.added, &difference.retyped).await? {
            if let Some(table) = self.tables.get_mut(&oid) {
                table.columns = same;
            }
        }
        root_columns(client, &relation.schema, &relation.name).await
    }

    /// Gives a table the name that production has given it: by its OID it is the same one.
    async fn rename(&mut self, table: &TableState, relation: &Relation) -> Result<(), LogicalError> {
        let client = self.session().await?;
        let is_anothers = self
            .tables
            .iter()
            .any(|(oid, other)| *oid != relation.oid && (&other.schema, &other.name) == (&table.schema, &table.name));
        let has_old = !is_anothers && is_on_root(&client, &table.schema, &table.name).await?;
        let has_new = is_on_root(&client, &relation.schema, &relation.name).await?;
        match (has_old, has_new) {
            (true, false) => {
                let mut statements = Vec::new();
                if relation.schema != table.schema {
                    let old = qualified(&table.schema, &table.name);
                    statements.push(format!("alter table {old} set schema {}", quoted(&relation.schema)));
                }
                if relation.name != table.name {
                    let old = qualified(&relation.schema, &table.name);
                    statements.push(format!("alter table {old} rename to {}", quoted(&relation.name)));
                }
                for statement in statements {
                    tracing::info!(statement, "production renamed a table: the root follows");
                    let done = client.batch_execute(&statement).await;
                    done.map_err(|source| LogicalError::Schema { statement, source })?;
                }
            }
            // Somebody has done it here.
            (false, true) => {}
            _ => {
                let here = if has_old { "which another table is called here" } else { "and is not here" };
                return Err(LogicalError::TableChanged {
                    table: format!("{}.{}", table.schema, table.name),
                    change: format!("it is called {}.{} now, {here}", relation.schema, relation.name),
                });
            }
        }
        if let Some(table) = self.tables.get_mut(&relation.oid) {
            table.schema.clone_from(&relation.schema);
            table.name.clone_from(&relation.name);
        }
        // What was prepared by the old name would be another table's, once it has that name.
        if let Some(session) = &mut self.session {
            session.prepared.clear();
        }
        self.is_altered = true;
        Ok(())
    }

    async fn insert(&mut self, change: &Change) -> Result<(), LogicalError> {
        let Some(shape) = self.target(change.relation).await? else { return Ok(()) };
        let made = shape.insert(&change.row).map_err(|why| no_statement(&shape, why))?;
        self.run(made, Expect::Any(change.relation)).await
    }

    async fn update(&mut self, update: &Update) -> Result<(), LogicalError> {
        let Some(shape) = self.target(update.relation).await? else { return Ok(()) };
        let made = shape.update(update.old.as_ref(), &update.new).map_err(|why| no_statement(&shape, why))?;
        match made {
            Some(made) => self.run(made, Expect::One(update.relation, "updated")).await,
            None => Ok(()),
        }
    }

    async fn delete(&mut self, change: &Change) -> Result<(), LogicalError> {
        let Some(shape) = self.target(change.relation).await? else { return Ok(()) };
        let made = shape.delete(&change.row).map_err(|why| no_statement(&shape, why))?;
        self.run(made, Expect::One(change.relation, "deleted")).await
    }

    async fn truncate(&mut self, truncate: &Truncate) -> Result<(), LogicalError> {
        let mut names = Vec::new();
        let mut first = None;
        for &oid in &truncate.relations {
            if let Some(shape) = self.target(oid).await? {
                names.push(qualified(&shape.schema, &shape.name));
                first = first.or(Some(oid));
            }
        }
        let Some(first) = first else { return Ok(()) };
        self.finish_under_way(0).await?;
        let client = self.session().await?;
        // Those that a CASCADE reached are named as well, if they are followed; sequences are kept ahead by themselves.
        let followed: Vec<String> = self.tables.values().map(|table| qualified(&table.schema, &table.name)).collect();
        let reached = client.query(REACHED, &[&names, &followed]).await.map_err(root("emptying tables"))?;
        let only = names.iter().map(|name| format!("only {name}"));
        let all: Vec<String> = only.chain(reached.iter().map(|row| row.get(0))).collect();
        let done = client.batch_execute(&format!("truncate {}", all.join(", "))).await;
        self.look(done.map(|()| 0), Expect::Any(first))
    }

    /// Sends a statement on its way; its outcome is looked at later.
    async fn run(&mut self, made: Prepared, expect: Expect) -> Result<(), LogicalError> {
        let Prepared { sql, values } = made;
        let client = self.session().await?;
        let known = self.session.as_ref().and_then(|session| session.prepared.get(&sql).cloned());
        let statement = match known {
            Some(statement) => statement,
            None => {
                let statement = match client.prepare(&sql).await {
                    Ok(statement) => statement,
                    Err(error) => {
                        // What was refused before says more than what is refused because of that.
                        self.finish_under_way(0).await?;
                        return self.look(Err(error), expect);
                    }
                };
                if let Some(session) = &mut self.session {
                    if session.prepared.len() >= PREPARED_MAX {
                        session.prepared.clear();
                    }
                    session.prepared.insert(sql, statement.clone());
                }
                statement
            }
        };
        let bytes = values.iter().filter_map(|value| value.0.as_ref()).map(bytes::Bytes::len).sum();
        let mut running: Running = Box::pin(async move { client.execute_raw(&statement, values).await });
        // The first poll sends it: statements are sent in the order in which they came.
        match futures_util::poll!(running.as_mut()) {
            Poll::Ready(done) => self.look(done, expect)?,
            Poll::Pending => {
                self.under_way_bytes += bytes;
                self.under_way.push_back(UnderWay { running, expect, bytes });
            }
        }
        let most = if self.under_way_bytes > UNDER_WAY_BYTES_MAX { 0 } else { UNDER_WAY_MAX };
        self.finish_under_way(most).await
    }

    /// Waits until at most so many statements are under way.
    async fn finish_under_way(&mut self, most: usize) -> Result<(), LogicalError> {
        while self.under_way.len() > most {
            let Some(first) = self.under_way.front_mut() else { break };
            let done = first.running.as_mut().await;
            let expect = first.expect;
            self.under_way_bytes = self.under_way_bytes.saturating_sub(first.bytes);
            self.under_way.pop_front();
            self.look(done, expect)?;
        }
        Ok(())
    }

    fn look(&self, done: Result<u64, tokio_postgres::Error>, expect: Expect) -> Result<(), LogicalError> {
        let (Expect::One(oid, _) | Expect::Any(oid)) = expect;
        let table = || {
            let table = self.tables.get(&oid).map(|table| format!("{}.{}", table.schema, table.name));
            table.unwrap_or_default()
        };
        match (done, expect) {
            (Err(error), _) => Err(match error.as_db_error() {
                Some(said) if !passes(&error) => {
                    let cause = match said.detail() {
                        Some(detail) => format!("{} ({detail})", said.message()),
                        None => said.message().to_owned(),
                    };
                    LogicalError::Unfit { table: table(), cause, code: said.code().code().to_owned() }
                }
                _ => root("applying a change")(error),
            }),
            (Ok(rows), Expect::One(_, action)) if rows != 1 => {
                let found = if rows == 0 { MISSING } else { SEVERAL };
                Err(LogicalError::Diverged { table: table(), action, found })
            }
            (Ok(_), _) => Ok(()),
        }
    }
}

fn no_statement(shape: &Shape, why: NoStatement) -> LogicalError {
    let change = match why {
        NoStatement::NoKey => "its updates and deletes do not say which row they are of (replica identity)",
        NoStatement::Columns => "a change has other columns than the table was said to have",
    };
    LogicalError::TableChanged { table: shape.full_name(), change: change.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_api::control::{ApiErrorCode, ErrorInfo};
    use futures_util::FutureExt as _;

    use crate::logical::config::RootFuture;

    /// A root branch whose Postgres cannot be woken.
    struct Asleep;

    fn asleep() -> ErrorInfo {
        ErrorInfo::new(ApiErrorCode::Internal, "it is asleep")
    }

    impl RootBranch for Asleep {
        fn wake(&self) -> RootFuture<'_> {
            Box::pin(async { Err(asleep()) })
        }

        fn saved(&self) -> Result<Option<String>, ErrorInfo> {
            Ok(None)
        }

        fn save(&self, _: &str) -> Result<(), ErrorInfo> {
            Err(asleep())
        }

        fn script(&self) -> Result<String, ErrorInfo> {
            Err(asleep())
        }

        fn save_script(&self, _: &str) -> Result<(), ErrorInfo> {
            Err(asleep())
        }
    }

    #[test]
    fn what_was_refused_is_said_before_the_session_is_used_for_something_else() {
        let mut applier = Applier::new("", "shop", "o", Arc::new(Asleep), &LogicalState::default());
        let running: Running = Box::pin(std::future::ready(Ok(0)));
        applier.under_way.push_back(UnderWay { running, expect: Expect::One(1, "updated"), bytes: 0 });
        let refused = applier.quiet_session().now_or_never().expect("nothing is waited for").err();
        assert!(matches!(refused, Some(LogicalError::Diverged { action: "updated", .. })), "{refused:?}");
        let refused = applier.quiet_session().now_or_never().expect("nothing is waited for").err();
        assert!(matches!(refused, Some(LogicalError::Branch(_))), "{refused:?}");
    }
}
