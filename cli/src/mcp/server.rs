//! The protocol's side: which tools there are, and which function a call goes to.

use std::sync::Arc;

use axum::http::request::Parts;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, Implementation, JsonObject, ListToolsResult, PaginatedRequestParams,
    ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::answer::{Trouble, result};
use super::applying::{Preparation, Prepared, carry_out, prepare_apply, prepare_delete, prepare_reset};
use super::call::Call;
use super::confirmation::{Confirmations, Outcome, Reply, State, Verdict};
use super::tools::{self, INSTRUCTIONS, Name};
use super::{branches, changes, checkpoints, rehearsal, sql};
use crate::api::Api;
use crate::config::Session;
use crate::failure::Failure;

/// With whose rights calls are made.
#[derive(Clone, Debug)]
pub enum Access {
    /// The user's who runs this process, as for any other command; found anew for each call.
    Settings {
        /// The server's API, if it was named.
        url: Option<String>,
    },
    /// Those of whoever calls, who showed a token of the server with this API.
    Callers {
        /// The server's API.
        url: String,
    },
}

/// Who calls over HTTP.
#[derive(Clone)]
pub struct Caller {
    /// A token that the server knows.
    pub token: String,
}

/// Which tools are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// All.
    All,
    /// Those that change nothing.
    Reading,
}

/// The tools, for any number of clients.
#[derive(Clone)]
pub struct Tools {
    access: Access,
    offer: Offer,
    confirmations: Arc<Confirmations<Prepared>>,
    work: TaskTracker,
}

impl Tools {
    /// Tools with these rights.
    pub fn new(access: Access, offer: Offer) -> Self {
        Tools { access, offer, confirmations: Arc::default(), work: TaskTracker::new() }
    }

    /// Waits for what must come to its end.
    pub async fn finish(&self) {
        self.work.close();
        self.work.wait().await;
    }

    fn offered(&self) -> impl Iterator<Item = Tool> {
        let offer = self.offer;
        tools::all().filter(move |(name, _)| offer == Offer::All || name.is_reading()).map(|(_, tool)| tool)
    }

    fn api(&self, context: &RequestContext<RoleServer>) -> Result<Api, Failure> {
        match &self.access {
            Access::Settings { url } => Api::new(url.as_deref()),
            Access::Callers { url } => {
                let caller = context.extensions.get::<Parts>().and_then(|parts| parts.extensions.get::<Caller>());
                let token = caller.map(|caller| caller.token.clone());
                Ok(Api::with_session(Session { url: url.clone(), token }))
            }
        }
    }

    async fn answer(
        &self,
        tool: Name,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, Trouble> {
        let call = Call::new(self.api(context)?, context, &self.work);
        let arguments = request.arguments.clone().unwrap_or_default();
        match tool {
            Name::ListBranches => done(branches::list(&call, parse(arguments)?).await),
            Name::BranchInfo => done(branches::info(&call, parse(arguments)?).await),
            Name::CreateBranch => done(branches::create(&call, parse(arguments)?).await),
            Name::ConnectionString => done(branches::connection(&call, parse(arguments)?).await),
            Name::Query => done(sql::query(&call, parse(arguments)?).await),
            Name::Execute => done(sql::execute(&call, parse(arguments)?).await),
            Name::Diff => done(changes::diff(&call, parse(arguments)?).await),
            Name::Rehearse => done(rehearsal::rehearse(&call, parse(arguments)?).await),
            Name::Checkpoint => done(checkpoints::mark(&call, parse(arguments)?).await),
            Name::Apply | Name::Rewind | Name::ResetBranch | Name::DeleteBranch => {
                self.confirmed(tool, &call, arguments, &request, context).await
            }
        }
    }

    /// A call that does something only when that was confirmed.
    async fn confirmed(
        &self,
        tool: Name,
        call: &Call,
        mut arguments: JsonObject,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, Trouble> {
        // What a confirmation is for: everything but itself, and nothing that says nothing.
        let token = arguments.remove("confirmation").and_then(|token| token.as_str().map(str::to_owned));
        arguments.retain(|_, value| !value.is_null());
        let asked_for = Value::Object(arguments.clone());
        let declined = || done(Ok(Outcome::new(State::Declined, "nothing was changed", Value::Null)));
        if let Some(reply) = Reply::of(token.as_deref(), request) {
            return match self.confirmations.answered(tool.as_str(), &asked_for, &reply)? {
                Some(prepared) => done(carry_out(call, prepared).await),
                None => declined(),
            };
        }
        let preparation = match tool {
            Name::Apply => prepare_apply(call, &parse(arguments)?).await?,
            Name::Rewind => checkpoints::prepare(call, &parse(arguments)?).await?,
            Name::ResetBranch => prepare_reset(call, &parse(arguments)?).await?,
            _ => prepare_delete(call, &parse(arguments)?).await?,
        };
        let (question, details, prepared) = match preparation {
            Preparation::Ask { question, details, prepared } => (question, details, prepared),
            Preparation::Over(outcome) => return done(Ok(outcome)),
        };
        match self.confirmations.ask(context, tool.as_str(), &asked_for, &question, prepared).await? {
            Verdict::Yes(prepared) => done(carry_out(call, prepared).await),
            Verdict::No => declined(),
            Verdict::Ask(wanted) => Ok(wanted.into()),
            Verdict::Token(token) => {
                let outcome =
                    Outcome { confirmation: Some(token), ..Outcome::new(State::NeedsConfirmation, question, details) };
                done(Ok(outcome))
            }
        }
    }
}

fn parse<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| {
        Failure::usage(format!("the arguments do not fit: {error}")).hint("see the tool's input schema")
    })
}

fn done<T: Serialize>(answer: Result<T, Trouble>) -> Result<CallToolResponse, Trouble> {
    answer.map(|answer| result(&answer).into())
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        let about = Implementation::new("ardent", env!("CARGO_PKG_VERSION")).with_title("Ardent: branches of Postgres");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(about)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.offered().collect()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.offered().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let offered = Name::of(&request.name).filter(|name| self.offer == Offer::All || name.is_reading());
        let Some(tool) = offered else {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", request.name), None));
        };
        Ok(self.answer(tool, request, &context).await.unwrap_or_else(|trouble| trouble.into_result().into()))
    }
}
