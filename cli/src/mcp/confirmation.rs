//! What waits for a yes: prepared by one call, done by the next, exactly as it was prepared.
//!
//! ```text
//!  call ─► prepared ─┬─ the client can ask its user: asked at once (or, newer protocol, before the call is made again)
//!                    └─ it cannot: the answer holds a token; the same call with it does what was prepared
//! ```
//!
//! A token is good once, for ten minutes, and for the arguments that it was made with.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rmcp::RoleServer;
use rmcp::model::{
    ClientResult, ElicitRequest, ElicitRequestParams, ElicitationAction, ElicitationSchema, InputRequest,
    InputRequiredResult, ProtocolVersion, ServerRequest,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use serde::Serialize;
use serde_json::Value;

use super::answer::Trouble;
use crate::failure::Failure;

/// How long something waits.
pub const WAITS: Duration = Duration::from_secs(600);
/// Most things that wait; the oldest is forgotten for the newest.
const WAITING_MAX: usize = 16;
/// The name of the one question.
const QUESTION: &str = "confirm";

/// How a call that needs a yes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Call again with the same arguments and the token
    NeedsConfirmation,
    /// It was done
    Done,
    /// The user said no: nothing was changed
    Declined,
    /// There is nothing to do
    NothingToDo,
    /// Branch and target changed the same things in different ways: nothing was changed
    Conflict,
}

/// What a call that needs a yes answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Outcome {
    /// How it ended
    pub state: State,
    /// What was done, or would be
    pub message: String,
    /// The token, good once and for 10 minutes; show the message to your user before you use it
    pub confirmation: Option<String>,
    /// More about it: counts, conflicts, how to undo it
    pub details: Value,
}

impl Outcome {
    /// An outcome without a token.
    pub fn new(state: State, message: impl Into<String>, details: Value) -> Self {
        Outcome { state, message: message.into(), confirmation: None, details }
    }
}

/// Who may say yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Whoever has the token.
    Caller,
    /// The client's user, whose answer comes with the call.
    User,
}

struct Waiting<T> {
    token: String,
    tool: String,
    arguments: Value,
    asked: Asked,
    until: Instant,
    prepared: T,
}

/// All that waits.
pub struct Confirmations<T> {
    waiting: Mutex<VecDeque<Waiting<T>>>,
}

impl<T> Default for Confirmations<T> {
    fn default() -> Self {
        Confirmations { waiting: Mutex::new(VecDeque::new()) }
    }
}

impl<T> Confirmations<T> {
    fn keep(&self, tool: &str, arguments: &Value, asked: Asked, prepared: T) -> String {
        let token = hex::encode(rand::random::<[u8; 16]>());
        let entry = Waiting {
            token: token.clone(),
            tool: tool.to_owned(),
            arguments: arguments.clone(),
            asked,
            until: Instant::now() + WAITS,
            prepared,
        };
        let mut waiting = self.waiting.lock();
        waiting.retain(|entry| entry.until > Instant::now());
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(entry);
        token
    }

    /// Gives what was prepared under a token, once.
    fn take(&self, tool: &str, arguments: &Value, asked: Asked, token: &str) -> Result<T, Failure> {
        let mut waiting = self.waiting.lock();
        let found = waiting.iter().position(|entry| entry.token == token && entry.asked == asked);
        let entry = found.and_then(|at| waiting.remove(at)).filter(|entry| entry.until > Instant::now());
        let again = format!("call {tool} without confirmation, and look at what it says");
        let entry = entry.ok_or_else(|| {
            Failure::usage("this confirmation is unknown, used or older than 10 minutes").hint(again.clone())
        })?;
        if entry.tool != tool || entry.arguments != *arguments {
            return Err(Failure::usage("this confirmation was given for something else").hint(again));
        }
        Ok(entry.prepared)
    }

    /// What the user answered to [`Verdict::Ask`].
    pub fn answered(&self, tool: &str, arguments: &Value, reply: &Reply<'_>) -> Result<Option<T>, Failure> {
        match reply {
            Reply::Token(token) => self.take(tool, arguments, Asked::Caller, token).map(Some),
            Reply::User { state, answer } => {
                let prepared = self.take(tool, arguments, Asked::User, state)?;
                Ok(answer.is_some_and(says_yes).then_some(prepared))
            }
        }
    }

    /// Asks for a yes to something prepared.
    pub async fn ask(
        &self,
        context: &RequestContext<RoleServer>,
        tool: &str,
        arguments: &Value,
        question: &str,
        prepared: T,
    ) -> Result<Verdict<T>, Trouble> {
        match Way::of(context) {
            Way::Token => Ok(Verdict::Token(self.keep(tool, arguments, Asked::Caller, prepared))),
            Way::BeforeRetry => {
                let state = self.keep(tool, arguments, Asked::User, prepared);
                let requests = [(QUESTION.to_owned(), InputRequest::Elicitation(elicitation(question)))].into();
                let mut wanted = InputRequiredResult::from_input_requests(requests);
                wanted.request_state = Some(state);
                Ok(Verdict::Ask(wanted))
            }
            Way::Meanwhile => {
                let request = ServerRequest::ElicitRequest(elicitation(question));
                let answer = tokio::select! {
                    answer = tokio::time::timeout(WAITS, context.peer.send_request(request)) => answer,
                    () = context.ct.cancelled() => return Err(Trouble::Cancelled),
                };
                let yes = match answer {
                    Ok(Ok(ClientResult::ElicitResult(answer))) => {
                        serde_json::to_value(answer).is_ok_and(|answer| says_yes(&answer))
                    }
                    Ok(Ok(_)) | Err(_) => false,
                    Ok(Err(error)) => return Err(Failure::local("the user could not be asked", &error).into()),
                };
                Ok(if yes { Verdict::Yes(prepared) } else { Verdict::No })
            }
        }
    }
}

/// What comes of asking.
pub enum Verdict<T> {
    /// The user said yes.
    Yes(T),
    /// The user said no, or nothing.
    No,
    /// The caller may say yes, with this token.
    Token(String),
    /// The client asks its user and calls again.
    Ask(InputRequiredResult),
}

/// What a call brings along.
pub enum Reply<'a> {
    /// A token from an earlier answer.
    Token(&'a str),
    /// What the client's user said.
    User {
        /// What we gave the client to bring back.
        state: &'a str,
        /// The answer, if there is one.
        answer: Option<&'a Value>,
    },
}

impl<'a> Reply<'a> {
    /// From a call's token, and from what the protocol brings back.
    pub fn of(token: Option<&'a str>, request: &'a rmcp::model::CallToolRequestParams) -> Option<Reply<'a>> {
        if let Some(state) = &request.request_state {
            let answer = request.input_responses.as_ref().and_then(|responses| responses.get(QUESTION));
            return Some(Reply::User { state, answer });
        }
        token.map(Reply::Token)
    }
}

/// How a client's user is asked.
enum Way {
    Meanwhile,
    BeforeRetry,
    Token,
}

impl Way {
    fn of(context: &RequestContext<RoleServer>) -> Way {
        let capabilities = context.client_capabilities();
        let asks = capabilities
            .and_then(|capabilities| capabilities.elicitation)
            // Those that name no kind have the first one.
            .is_some_and(|elicitation| elicitation.form.is_some() || elicitation.url.is_none());
        let newer = context
            .protocol_version()
            .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str());
        match (asks, newer) {
            (false, _) => Way::Token,
            (true, true) => Way::BeforeRetry,
            (true, false) => Way::Meanwhile,
        }
    }
}

fn elicitation(question: &str) -> ElicitRequest {
    let schema = ElicitationSchema::builder()
        .required_bool_property(QUESTION, |answer| answer.title("Do it").description("Whether it is to be done"))
        .build_unchecked();
    ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: question.to_owned(),
        requested_schema: schema,
    })
}

/// Whether an answer is a yes: accepted, and the box is ticked.
fn says_yes(answer: &Value) -> bool {
    let accepted = serde_json::from_value::<ElicitationAction>(answer["action"].clone())
        .is_ok_and(|action| action == ElicitationAction::Accept);
    accepted && answer["content"][QUESTION] == Value::Bool(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_what_it_was_made_for() {
        let all = Confirmations::default();
        let (one, other) = (json!({ "branch": "a" }), json!({ "branch": "b" }));
        let token = all.keep("delete_branch", &one, Asked::Caller, 7);
        let answered = |tool: &str, arguments: &Value, reply: Reply<'_>| {
            all.answered(tool, arguments, &reply).map_err(|failure| failure.info.message)
        };
        assert_eq!(answered("delete_branch", &one, Reply::Token(&token)), Ok(Some(7)));
        assert!(answered("delete_branch", &one, Reply::Token(&token)).is_err_and(|why| why.contains("used")));
        for (tool, arguments) in [("delete_branch", &other), ("reset_branch", &one)] {
            let token = all.keep("delete_branch", &one, Asked::Caller, 7);
            assert!(answered(tool, arguments, Reply::Token(&token)).is_err_and(|why| why.contains("something else")));
        }
    }

    #[test]
    fn what_a_user_is_asked_no_caller_answers() {
        let all = Confirmations::default();
        let arguments = json!({});
        let state = all.keep("apply", &arguments, Asked::User, ());
        assert!(all.answered("apply", &arguments, &Reply::Token(&state)).is_err());
        let answered = |answer: Value| {
            let state = all.keep("apply", &arguments, Asked::User, ());
            all.answered("apply", &arguments, &Reply::User { state: &state, answer: Some(&answer) }).expect("known")
        };
        assert_eq!(answered(json!({ "action": "accept", "content": { "confirm": true } })), Some(()));
        for no in [
            json!({ "action": "accept", "content": { "confirm": false } }),
            json!({ "action": "accept" }),
            json!({ "action": "decline", "content": { "confirm": true } }),
            json!(null),
        ] {
            assert_eq!(answered(no.clone()), None, "{no}");
        }
    }

    #[test]
    fn few_things_wait() {
        let all = Confirmations::default();
        let tokens: Vec<String> =
            (0..=WAITING_MAX).map(|number| all.keep("apply", &json!({}), Asked::Caller, number)).collect();
        assert!(all.answered("apply", &json!({}), &Reply::Token(&tokens[0])).is_err());
        assert_eq!(all.answered("apply", &json!({}), &Reply::Token(&tokens[1])).ok().flatten(), Some(1));
    }
}
