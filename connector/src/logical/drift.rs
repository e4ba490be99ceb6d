//! What changed in production's schema and is not followed: everything but the columns of tables.

use ardent_schema_diff::{Catalog, CatalogQueries, Identity, Kind, plan};
use tokio_postgres::Client;

use ardent_api::control::LogicalOptions;

use crate::logical::error::{LogicalError, root, source};
use crate::logical::session::quoted;

/// What the root has otherwise on purpose: triggers and rules that would fire for the rows that are applied.
const ON_PURPOSE: [&str; 2] = [" ENABLE ALWAYS ", " ENABLE REPLICA "];

/// The statements that would make the root's schema production's. Both sessions are in transactions with a snapshot each.
pub(crate) async fn schema_differences(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
) -> Result<Vec<String>, LogicalError> {
    let theirs = catalog(production).await.map_err(source("reading its catalogs"))?;
    let ours = catalog(client).await.map_err(root("reading its catalogs"))?;
    let read = |answers: Vec<Vec<String>>| {
        Catalog::from_answers(&answers).map_err(|error| LogicalError::State(error.to_string()))
    };
    let plan = plan(&read(ours)?, &read(theirs)?, Identity::Name);
    let is_of_schemas =
        |object: &str| options.schemas.is_empty() || options.schemas.iter().any(|schema| is_of_schema(object, schema));
    let differing = plan.statements.into_iter().filter(|statement| {
        // Publications are for those who read production, and ours is among them.
        statement.kind != Kind::Publication.word()
            && is_of_schemas(&statement.object)
            && !ON_PURPOSE.iter().any(|words| statement.sql.contains(words))
    });
    Ok(differing.map(|statement| statement.sql).collect())
}

/// `column note of table shop.users` is of `shop`.
fn is_of_schema(object: &str, schema: &str) -> bool {
    let quoted = quoted(schema);
    [schema, quoted.as_str()].iter().any(|name| {
        object
            .split_ascii_whitespace()
            .any(|word| word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    })
}

async fn catalog(client: &Client) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    client.batch_execute("set local search_path = pg_catalog").await?;
    let mut answers = Vec::new();
    for statement in CatalogQueries::new().statements {
        let rows = client.query(&format!("select q.v::text from ({statement}) q(v)"), &[]).await?;
        answers.push(rows.iter().map(|row| row.get(0)).collect());
    }
    client.batch_execute("set local search_path = ''").await?;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_known_by_their_schema() {
        assert!(is_of_schema("column note of table shop.users", "shop"));
        assert!(is_of_schema("schema shop", "shop") && is_of_schema("table \"Odd\".t", "Odd"));
        assert!(!is_of_schema("table workshop.users", "shop") && !is_of_schema("table public.shop", "shop"));
    }
}
