//! `ardent mcp install CLIENT`: puts this program into the configuration of a program that starts it, or that connects to it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::jsonc;
use super::remote::{self, Remote};
use crate::args::{McpClient, McpInstallArgs};
use crate::config::home;
use crate::failure::Failure;
use crate::output::Output;

/// What the entry is called.
const NAME: &str = "ardent";

/// How a client's file is written.
enum Format {
    /// An object of servers in this member of a JSON file, which may have comments; each that is started has these members besides.
    Json { section: &'static str, more: &'static [(&'static str, &'static str)] },
    /// Tables of a TOML file.
    Toml,
}

/// Where a client looks, and how it is written there.
struct Place {
    file: PathBuf,
    format: Format,
}

/// What a client is to do.
enum Server {
    /// Start this program with these words.
    Started { program: String, words: Vec<String> },
    /// Connect to it.
    Remote(Remote),
}

/// What was done.
#[derive(Serialize)]
struct Reply {
    schema_version: u32,
    client: McpClient,
    file: String,
    changed: bool,
    /// What the file was before.
    backup: Option<String>,
}

/// Runs the command.
pub fn run(output: &Output, url: Option<&str>, args: &McpInstallArgs) -> Result<(), Failure> {
    let place = place(args.client)?;
    let server = match &args.http {
        Some(http) => Server::Remote(Remote::new(args.client, http, url)?),
        None => Server::Started { program: program()?, words: words(url, args.read_only) },
    };
    if args.print {
        let (file, text) = (place.file.display(), changed(&place.format, "", &server.without_secret()));
        output.note(&format!("for {file}:"));
        return output.line(text.map_err(|why| cannot(&place.file, &why))?.unwrap_or_default().trim_end());
    }
    let before = match fs::read_to_string(&place.file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::local(format!("{} cannot be read", place.file.display()), &error)),
    };
    let text = changed(&place.format, before.as_deref().unwrap_or_default(), &server)
        .map_err(|why| cannot(&place.file, &why))?;
    let mut backup = None;
    if let Some(text) = &text {
        backup = write(&place.file, before.as_deref(), text, server.has_secret())
            .map_err(|error| Failure::local(format!("{} cannot be written", place.file.display()), &error))?;
    }
    let reply = Reply {
        schema_version: SCHEMA_VERSION,
        client: args.client,
        file: place.file.display().to_string(),
        changed: text.is_some(),
        backup: backup.map(|path| path.display().to_string()),
    };
    output.data(&reply, |reply| match (reply.changed, &reply.backup) {
        (false, _) => format!("{} has it already", reply.file),
        (true, None) => format!("wrote {}; start the program again", reply.file),
        (true, Some(backup)) => format!("changed {} (before: {backup}); start the program again", reply.file),
    })?;
    if let Server::Remote(remote) = &server {
        output.note(remote.about_token());
    }
    Ok(())
}

fn words(url: Option<&str>, read_only: bool) -> Vec<String> {
    let url = url.map(|url| ["--url".to_owned(), url.to_owned()]);
    let mut words: Vec<String> = url.into_iter().flatten().collect();
    words.push("mcp".to_owned());
    words.extend(read_only.then(|| "--read-only".to_owned()));
    words
}

impl Server {
    fn has_secret(&self) -> bool {
        matches!(self, Server::Remote(remote) if remote.has_secret())
    }

    /// The same, to be shown.
    fn without_secret(&self) -> Server {
        match self {
            Server::Started { program, words } => Server::Started { program: program.clone(), words: words.clone() },
            Server::Remote(remote) => Server::Remote(remote.without_secret()),
        }
    }
}

fn cannot(file: &Path, why: &str) -> Failure {
    let error = ErrorInfo::new(ApiErrorCode::Conflict, format!("{} was left as it is: {why}", file.display()));
    Failure::from(error).hint("ardent mcp install CLIENT --print shows what to add by hand")
}

/// The program as clients are to start it: by its name where that finds it, so that the file may be shared.
fn program() -> Result<String, Failure> {
    let own =
        std::env::current_exe().map_err(|error| Failure::local("this program does not know where it is", &error))?;
    let found = std::env::var_os("PATH").and_then(|path| {
        let all: Vec<PathBuf> = std::env::split_paths(&path).collect();
        all.into_iter().map(|folder| folder.join(NAME)).find(|file| file.is_file())
    });
    let same = found.and_then(|found| found.canonicalize().ok()).is_some_and(|found| found == own);
    Ok(if same { NAME.to_owned() } else { own.to_string_lossy().into_owned() })
}

fn place(client: McpClient) -> Result<Place, Failure> {
    let servers = |more| Format::Json { section: "mcpServers", more };
    let config = || match std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => home().map(|home| home.join(".config")),
    };
    let stdio: &[(&str, &str)] = &[("type", "stdio")];
    let (file, format) = match client {
        McpClient::ClaudeCode => (PathBuf::from(".mcp.json"), servers(stdio)),
        McpClient::ClaudeDesktop => (config()?.join("Claude").join("claude_desktop_config.json"), servers(&[])),
        McpClient::Cursor => (home()?.join(".cursor").join("mcp.json"), servers(&[])),
        McpClient::Vscode => {
            (PathBuf::from(".vscode").join("mcp.json"), Format::Json { section: "servers", more: stdio })
        }
        McpClient::Codex => {
            let folder = match std::env::var_os("CODEX_HOME").filter(|folder| !folder.is_empty()) {
                Some(folder) => PathBuf::from(folder),
                None => home()?.join(".codex"),
            };
            (folder.join("config.toml"), Format::Toml)
        }
        McpClient::GeminiCli => (home()?.join(".gemini").join("settings.json"), servers(&[])),
        McpClient::Windsurf => (home()?.join(".codeium").join("windsurf").join("mcp_config.json"), servers(&[])),
        McpClient::Zed => {
            let format = Format::Json { section: "context_servers", more: &[("source", "custom")] };
            (config()?.join("zed").join("settings.json"), format)
        }
    };
    Ok(Place { file, format })
}

/// The text with the entry; nothing if it has it already.
fn changed(format: &Format, text: &str, server: &Server) -> Result<Option<String>, String> {
    match (format, server) {
        (Format::Json { section, more }, Server::Started { program, words }) => {
            let mut entry: Map<String, Value> =
                more.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            entry.insert("command".to_owned(), json!(program));
            entry.insert("args".to_owned(), json!(words));
            jsonc::set(text, section, NAME, &entry, &remote::MEMBERS).map_err(|error| error.to_string())
        }
        (Format::Json { section, .. }, Server::Remote(remote)) => {
            let stale = [&remote::MEMBERS[..], &["command", "args", "source"]].concat();
            let set = jsonc::set(text, section, NAME, &remote.members(), &stale).map_err(|error| error.to_string())?;
            let Some(input) = remote.input() else { return Ok(set) };
            let added = jsonc::add(set.as_deref().unwrap_or(text), "inputs", &input);
            Ok(added.map_err(|error| error.to_string())?.or(set))
        }
        (Format::Toml, Server::Started { program, words }) => {
            changed_toml(text, &[format!("command = {}", json!(program)), format!("args = {}", json!(words))])
        }
        (Format::Toml, Server::Remote(remote)) => changed_toml(text, &remote.lines()),
    }
}

/// TOML's basic strings are JSON's, but for one control character.
fn changed_toml(text: &str, lines: &[String]) -> Result<Option<String>, String> {
    let table = format!("[mcp_servers.{NAME}]");
    let mut found = text.lines().skip_while(|line| line.trim() != table);
    if found.next().is_some() {
        let there: Vec<&str> = found.take_while(|line| !line.trim_start().starts_with('[')).map(str::trim).collect();
        let has_all = lines.iter().all(|line| there.contains(&line.as_str()));
        return if has_all { Ok(None) } else { Err(format!("it has another {table}: make it {}", lines.join(", "))) };
    }
    let written_otherwise = text.lines().map(str::trim).any(|line| {
        let line: String = line.chars().filter(|letter| !letter.is_whitespace() && *letter != '"').collect();
        line.starts_with("mcp_servers=")
            || line.starts_with("mcp_servers.ardent")
            || line.starts_with("[mcp_servers.ardent]")
    });
    if written_otherwise {
        return Err("its servers are written in a way that this command does not change".to_owned());
    }
    let gap = if text.trim().is_empty() { "" } else { "\n" };
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(Some(format!("{text}{end}{gap}{table}\n{}\n", lines.join("\n"))))
}

/// Writes a file whole; what it was goes beside it first. A link to it stays a link. One with a secret is its owner's alone.
fn write(file: &Path, before: Option<&str>, text: &str, has_secret: bool) -> io::Result<Option<PathBuf>> {
    let file = if before.is_some() { file.canonicalize()? } else { file.to_owned() };
    let beside = |end: &str| {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(end);
        file.with_file_name(name)
    };
    // Such files hold other programs' secrets.
    let mut mode = 0o600;
    let backup = match before {
        None => {
            if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder)?;
            }
            None
        }
        Some(_) => {
            mode = fs::metadata(&file)?.permissions().mode() & if has_secret { 0o700 } else { 0o777 };
            let backup = beside(".before-ardent");
            fs::copy(&file, &backup)?;
            Some(backup)
        }
    };
    let part = beside(&format!(".{}.part", std::process::id()));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&part, &file)?;
    Ok(backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_gets_a_table_once() {
        let lines = ["command = \"ardent\"".to_owned(), "args = [\"mcp\"]".to_owned()];
        let table = "[mcp_servers.ardent]\ncommand = \"ardent\"\nargs = [\"mcp\"]\n";
        let check = |text: &str, expect: &str| {
            let changed = changed_toml(text, &lines).expect("it can be").expect("it changes");
            assert_eq!(changed, expect);
            assert_eq!(changed_toml(&changed, &lines), Ok(None), "twice is once");
        };
        check("", table);
        check("model = \"x\" # mine", &format!("model = \"x\" # mine\n\n{table}"));
        check("[mcp_servers.other]\ncommand = \"y\"\n", &format!("[mcp_servers.other]\ncommand = \"y\"\n\n{table}"));
        for text in [
            "[mcp_servers.ardent]\ncommand = \"/old\"\n",
            "mcp_servers = { other = { command = \"y\" } }",
            "[mcp_servers.\"ardent\"]\ncommand = \"ardent\"",
            "mcp_servers . ardent . command = \"x\"",
        ] {
            assert!(changed_toml(text, &lines).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_changed_whole_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("below").join("x.json"), folder.path().join("link.json"));
        assert_eq!(write(&file, None, "{}\n", false).expect("written"), None);
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("own file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        let backup = write(&link, Some("{}\n"), "{ }\n", false).expect("written").expect("kept");
        assert_eq!(
            (fs::read_to_string(&backup).expect("there"), fs::read_to_string(&link).expect("there")),
            ("{}\n".into(), "{ }\n".into())
        );
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        write(&link, Some("{ }\n"), "{}\n", true).expect("written");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600, "a secret is in it");
    }

    #[test]
    fn one_that_was_started_is_connected_to_and_back() {
        let format = Format::Json { section: "servers", more: &[("type", "stdio")] };
        let started = Server::Started { program: "ardent".to_owned(), words: vec!["mcp".to_owned()] };
        let remote = Remote { client: McpClient::Vscode, url: "http://127.0.0.1:1/mcp".to_owned(), token: None };
        let remote = Server::Remote(remote);
        let first = changed(&format, "", &started).expect("it can be").expect("it changes");
        let second = changed(&format, &first, &remote).expect("it can be").expect("it changes");
        let expect = json!({
            "servers": { "ardent": {
                "type": "http",
                "url": "http://127.0.0.1:1/mcp",
                "headers": { "Authorization": "Bearer ${input:ardent-token}" },
            } },
            "inputs": [{
                "type": "promptString",
                "id": "ardent-token",
                "description": "Token of the ardent server",
                "password": true,
            }],
        });
        assert_eq!(serde_json::from_str::<Value>(&second).expect("JSON"), expect);
        assert_eq!(changed(&format, &second, &remote), Ok(None), "twice is once");
        let third = changed(&format, &second, &started).expect("it can be").expect("it changes");
        let entry = serde_json::from_str::<Value>(&third).expect("JSON")["servers"]["ardent"].clone();
        assert_eq!(entry, json!({ "type": "stdio", "command": "ardent", "args": ["mcp"] }));
    }
}
