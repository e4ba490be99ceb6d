//! How clients are told to connect to `ardent mcp --listen`, each with the token in the way that its documentation gives.

use serde_json::{Map, Value, json};

use crate::args::McpClient;
use crate::config::Session;
use crate::failure::Failure;

/// Members of a JSON entry that say where to connect to.
pub const MEMBERS: [&str; 4] = ["url", "serverUrl", "httpUrl", "headers"];
/// Where clients that can have it from their environment have the token from: as this command does.
const VARIABLE: &str = "ARDENT_TOKEN";
/// VS Code asks for it once under this name, and keeps it.
const INPUT: &str = "ardent-token";

/// A server that a client connects to.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Who connects.
    pub client: McpClient,
    /// Where to.
    pub url: String,
    /// Where nothing but the file can have the token: the token.
    pub token: Option<String>,
}

impl Remote {
    /// The server at `http`, for a client that can connect to one. `api`: the ardent server, whose token is taken where it must be.
    pub fn new(client: McpClient, http: &str, api: Option<&str>) -> Result<Remote, Failure> {
        if client == McpClient::ClaudeDesktop {
            return Err(Failure::usage("claude-desktop connects to nothing that its file names: it starts programs")
                .hint("ardent mcp install claude-desktop"));
        }
        if !keeps_tokens(http) {
            return Err(Failure::usage(format!("{http:?} is no URL that a token can be sent to")).hint(
                "give the one that ardent mcp --listen prints, such as http://127.0.0.1:7481/mcp, or one with https",
            ));
        }
        let token = match client {
            McpClient::Zed => {
                let token = Session::resolve(api)?.token;
                let missing = || Failure::usage("zed needs the token in its file, and there is none here");
                Some(token.ok_or_else(missing)?)
            }
            _ => None,
        };
        Ok(Remote { client, url: http.to_owned(), token })
    }

    /// Whether the token itself is in the entry.
    pub fn has_secret(&self) -> bool {
        self.token.is_some()
    }

    /// The same with a word in the token's place.
    pub fn without_secret(&self) -> Remote {
        Remote { token: self.token.as_ref().map(|_| "TOKEN".to_owned()), ..self.clone() }
    }

    /// The members of a JSON entry.
    pub fn members(&self) -> Map<String, Value> {
        let token = match self.client {
            McpClient::ClaudeCode | McpClient::GeminiCli => format!("${{{VARIABLE}}}"),
            McpClient::Vscode => format!("${{input:{INPUT}}}"),
            McpClient::Zed => self.token.clone().unwrap_or_default(),
            McpClient::Cursor | McpClient::Windsurf | McpClient::ClaudeDesktop | McpClient::Codex => {
                format!("${{env:{VARIABLE}}}")
            }
        };
        let url = match self.client {
            McpClient::GeminiCli => "httpUrl",
            McpClient::Windsurf => "serverUrl",
            _ => "url",
        };
        let mut members = Map::new();
        if matches!(self.client, McpClient::ClaudeCode | McpClient::Vscode) {
            members.insert("type".to_owned(), json!("http"));
        }
        members.insert(url.to_owned(), json!(self.url));
        members.insert("headers".to_owned(), json!({ "Authorization": format!("Bearer {token}") }));
        members
    }

    /// What has to be among the file's `inputs` besides.
    pub fn input(&self) -> Option<Map<String, Value>> {
        let input = json!({
            "type": "promptString",
            "id": INPUT,
            "description": "Token of the ardent server",
            "password": true,
        });
        input.as_object().filter(|_| self.client == McpClient::Vscode).cloned()
    }

    /// The lines of a TOML table.
    pub fn lines(&self) -> [String; 2] {
        [format!("url = {}", json!(self.url)), format!("bearer_token_env_var = {}", json!(VARIABLE))]
    }

    /// Where the token comes from.
    pub fn about_token(&self) -> &'static str {
        match self.client {
            McpClient::Vscode => "it asks for the token when it connects first, and keeps it",
            McpClient::Zed => "the token is in that file, which nobody else can read any more",
            _ => "start it with the token in its environment, as ARDENT_TOKEN",
        }
    }
}

/// Whether what is sent to a URL is read by nobody on the way: TLS, or this host alone.
fn keeps_tokens(url: &str) -> bool {
    if let Some(rest) = url.strip_prefix("https://") {
        return !rest.is_empty();
    }
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_to_this_host_or_through_tls() {
        for url in [
            "http://127.0.0.1:7481/mcp",
            "http://localhost/mcp",
            "http://[::1]:1/mcp",
            "https://ardent.example.com/mcp",
        ] {
            assert!(keeps_tokens(url), "{url}");
        }
        for url in [
            "http://192.0.2.1/mcp",
            "http://localhost.example.com/",
            "http://127.0.0.1@example.com/",
            "ftp://x",
            "https://",
            "",
        ] {
            assert!(!keeps_tokens(url), "{url}");
        }
    }

    #[test]
    fn each_client_has_the_token_in_its_own_way() {
        let url = "http://127.0.0.1:1/mcp";
        let members = |client, token: Option<&str>| {
            Value::Object(Remote { client, url: url.to_owned(), token: token.map(str::to_owned) }.members())
        };
        let bearer = |token: &str| json!({ "Authorization": format!("Bearer {token}") });
        for (client, expect) in [
            (McpClient::ClaudeCode, json!({ "type": "http", "url": url, "headers": bearer("${ARDENT_TOKEN}") })),
            (McpClient::Vscode, json!({ "type": "http", "url": url, "headers": bearer("${input:ardent-token}") })),
            (McpClient::Cursor, json!({ "url": url, "headers": bearer("${env:ARDENT_TOKEN}") })),
            (McpClient::Windsurf, json!({ "serverUrl": url, "headers": bearer("${env:ARDENT_TOKEN}") })),
            (McpClient::GeminiCli, json!({ "httpUrl": url, "headers": bearer("${ARDENT_TOKEN}") })),
        ] {
            assert_eq!(members(client, None), expect);
        }
        assert_eq!(members(McpClient::Zed, Some("abc")), json!({ "url": url, "headers": bearer("abc") }));
        let zed = Remote { client: McpClient::Zed, url: url.to_owned(), token: Some("abc".to_owned()) };
        assert!(zed.has_secret() && !json!(zed.without_secret().members()).to_string().contains("abc"));
        let codex = Remote { client: McpClient::Codex, url: url.to_owned(), token: None };
        assert_eq!(codex.lines(), [format!("url = \"{url}\""), "bearer_token_env_var = \"ARDENT_TOKEN\"".to_owned()]);
    }
}
