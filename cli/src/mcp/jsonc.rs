//! Changes one member of a JSON file that people write: with comments and commas at the end, which stay as they are.

use std::ops::Range;

use serde_json::{Map, Value};

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 128;

/// Where a text is no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is no JSON: {what}")]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Sets `section.name`, in a text that is an object or nothing. Members of an entry that is there already and that `entry` does
/// not have stay, but for those that are `stale`. Gives nothing if it is so already.
pub fn set(
    text: &str,
    section: &str,
    name: &str,
    entry: &Map<String, Value>,
    stale: &[&str],
) -> Result<Option<String>, Malformed> {
    let reader = Reader { text };
    let start = reader.skip(0)?;
    if start == text.len() {
        let whole = serde_json::json!({ section: { name: entry } });
        return Ok(Some(format!("{whole:#}\n")));
    }
    let root = reader.object(start)?;
    if reader.skip(root.close + 1)? != text.len() {
        return Err(reader.malformed(root.close + 1, "there is something behind its end"));
    }
    let indent = root.indent(text);
    let Some(inside) = root.member(section) else {
        let value = serde_json::json!({ name: entry });
        return Ok(Some(insert(text, &root, section, &value, indent, 1)));
    };
    let inside = reader.object(inside.start)?;
    let Some(range) = inside.member(name) else {
        return Ok(Some(insert(text, &inside, name, &Value::Object(entry.clone()), indent, 2)));
    };
    let mut there = reader.plain(&range)?;
    let Value::Object(members) = &mut there else {
        return Err(reader.malformed(range.start, "an object was expected here"));
    };
    let is_stale = |name: &String| stale.contains(&name.as_str()) && !entry.contains_key(name);
    if entry.iter().all(|(name, value)| members.get(name) == Some(value)) && !members.keys().any(is_stale) {
        return Ok(None);
    }
    members.retain(|name, _| !is_stale(name));
    members.extend(entry.clone());
    let mut changed = text.to_owned();
    changed.replace_range(range, &pretty(&there, indent, 2));
    Ok(Some(changed))
}

/// Puts an entry before all others of the list in this member, in a text that is an object, unless one with the same `id` is there.
pub fn add(text: &str, list: &str, entry: &Map<String, Value>) -> Result<Option<String>, Malformed> {
    let reader = Reader { text };
    let root = reader.object(reader.skip(0)?)?;
    let indent = root.indent(text);
    let Some(range) = root.member(list) else {
        let value = serde_json::json!([entry]);
        return Ok(Some(insert(text, &root, list, &value, indent, 1)));
    };
    let Value::Array(there) = reader.plain(&range)? else {
        return Err(reader.malformed(range.start, "a list was expected here"));
    };
    if there.iter().any(|one| one.get("id") == entry.get("id")) {
        return Ok(None);
    }
    let end = if there.is_empty() { format!("\n{indent}") } else { ",".to_owned() };
    let added = format!("\n{}{}{end}", indent.repeat(2), pretty(&Value::Object(entry.clone()), indent, 2));
    let at = range.start + 1;
    Ok(Some(format!("{}{added}{}", &text[..at], &text[at..])))
}

/// Puts a member before all others of an object.
fn insert(text: &str, object: &Object, name: &str, value: &Value, indent: &str, depth: usize) -> String {
    let member = format!("\n{}{}: {}", indent.repeat(depth), Value::from(name), pretty(value, indent, depth));
    let end = if object.members.is_empty() { format!("\n{}", indent.repeat(depth - 1)) } else { ",".to_owned() };
    let at = object.open + 1;
    format!("{}{member}{end}{}", &text[..at], &text[at..])
}

/// A value over several lines, as it stands in a file at this depth.
fn pretty(value: &Value, indent: &str, depth: usize) -> String {
    let text = format!("{value:#}");
    let lines = text.lines().enumerate().map(|(number, line)| {
        let inner = line.trim_start();
        let levels = (line.len() - inner.len()) / 2;
        if number == 0 { inner.to_owned() } else { format!("\n{}{inner}", indent.repeat(depth + levels)) }
    });
    lines.collect()
}

/// An object of a text.
struct Object {
    open: usize,
    close: usize,
    /// Names, where they stand, and where their values are.
    members: Vec<(String, usize, Range<usize>)>,
}

impl Object {
    /// The last one of a name counts, as it does for those who read it.
    fn member(&self, name: &str) -> Option<Range<usize>> {
        self.members.iter().rev().find(|(known, ..)| known == name).map(|(_, _, range)| range.clone())
    }

    /// What stands before the first member on its line.
    fn indent<'a>(&self, text: &'a str) -> &'a str {
        let Some((_, at, _)) = self.members.first() else { return "  " };
        let line = text[..*at].rfind('\n').map_or(0, |at| at + 1);
        let before = &text[line..*at];
        if !before.is_empty() && before.chars().all(|letter| letter == ' ' || letter == '\t') { before } else { "  " }
    }
}

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn malformed(&self, at: usize, what: &'static str) -> Malformed {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        Malformed { line: before.iter().filter(|byte| **byte == b'\n').count() + 1, what }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The next place that is neither white space nor comment.
    fn skip(&self, mut at: usize) -> Result<usize, Malformed> {
        loop {
            let rest = &self.text[at..];
            at += rest.len()
                - rest.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}').len();
            let rest = &self.text[at..];
            if rest.starts_with("//") {
                at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                let end = rest.find("*/").ok_or_else(|| self.malformed(at, "a comment has no end"))?;
                at += end + 2;
            } else {
                return Ok(at);
            }
        }
    }

    /// The place behind a string.
    fn string(&self, at: usize) -> Result<usize, Malformed> {
        if self.byte(at) != Some(b'"') {
            return Err(self.malformed(at, "a string was expected here"));
        }
        let mut end = at + 1;
        loop {
            match self.byte(end) {
                Some(b'"') => return Ok(end + 1),
                Some(b'\\') => end += 2,
                Some(byte) if byte != b'\n' => end += 1,
                _ => return Err(self.malformed(at, "a string has no end")),
            }
        }
    }

    fn object(&self, at: usize) -> Result<Object, Malformed> {
        self.object_at(at, 0)
    }

    fn object_at(&self, open: usize, depth: usize) -> Result<Object, Malformed> {
        if self.byte(open) != Some(b'{') {
            return Err(self.malformed(open, "an object was expected here"));
        }
        let (mut members, mut at) = (Vec::new(), self.skip(open + 1)?);
        while self.byte(at) != Some(b'}') {
            let end = self.string(at)?;
            let name: String = serde_json::from_str(&self.text[at..end]).map_err(|_| self.malformed(at, "no name"))?;
            let colon = self.skip(end)?;
            if self.byte(colon) != Some(b':') {
                return Err(self.malformed(colon, "a colon was expected here"));
            }
            let value = self.skip(colon + 1)?;
            let end = self.value(value, depth + 1)?;
            members.push((name, at, value..end));
            at = self.behind_comma(end, b'}')?;
        }
        Ok(Object { open, close: at, members })
    }

    /// The place of the next entry, or of the end.
    fn behind_comma(&self, at: usize, end: u8) -> Result<usize, Malformed> {
        let at = self.skip(at)?;
        match self.byte(at) {
            Some(b',') => self.skip(at + 1),
            Some(byte) if byte == end => Ok(at),
            _ => Err(self.malformed(at, "a comma or an end was expected here")),
        }
    }

    /// The place behind a value.
    fn value(&self, at: usize, depth: usize) -> Result<usize, Malformed> {
        if depth > DEPTH_MAX {
            return Err(self.malformed(at, "it is nested too deeply"));
        }
        match self.byte(at) {
            Some(b'{') => Ok(self.object_at(at, depth)?.close + 1),
            Some(b'[') => {
                let mut at = self.skip(at + 1)?;
                while self.byte(at) != Some(b']') {
                    let end = self.value(at, depth + 1)?;
                    at = self.behind_comma(end, b']')?;
                }
                Ok(at + 1)
            }
            Some(b'"') => self.string(at),
            _ => {
                let rest = &self.text[at..];
                let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && !"+-.".contains(letter));
                let end = end.unwrap_or(rest.len());
                let scalar = serde_json::from_str::<Value>(&rest[..end]);
                scalar.map(|_| at + end).map_err(|_| self.malformed(at, "a value was expected here"))
            }
        }
    }

    /// A value without its comments.
    fn plain(&self, range: &Range<usize>) -> Result<Value, Malformed> {
        let (mut plain, mut at) = (String::new(), range.start);
        while at < range.end {
            let next = self.skip(at)?.min(range.end);
            at = match self.byte(next) {
                None => break,
                Some(b'"') => {
                    let end = self.string(next)?;
                    plain.push_str(&self.text[next..end]);
                    end
                }
                Some(byte) if byte.is_ascii() => {
                    // A comma before an end is none.
                    if matches!(byte, b'}' | b']') && plain.ends_with(',') {
                        plain.pop();
                    }
                    plain.push(char::from(byte));
                    next + 1
                }
                Some(_) => return Err(self.malformed(next, "a value was expected here")),
            };
        }
        serde_json::from_str(&plain).map_err(|_| self.malformed(range.start, "a value was expected here"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry() -> Map<String, Value> {
        json!({ "command": "ardent", "args": ["mcp"] }).as_object().expect("an object").clone()
    }

    #[track_caller]
    fn check(text: &str, expect: &str) {
        let changed = set(text, "mcpServers", "ardent", &entry(), &["url"]).expect("it is JSON").expect("it changes");
        assert_eq!(changed, expect);
        assert_eq!(set(&changed, "mcpServers", "ardent", &entry(), &["url"]), Ok(None), "twice is once");
    }

    #[test]
    fn what_is_there_stays_with_its_comments() {
        let own = "{\n  \"mcpServers\": {\n    \"ardent\": {\n      \"args\": [\n        \"mcp\"\n      ],\n      \"command\": \"ardent\"\n    }\n  }\n}\n";
        check("", own);
        check(" \n", own);
        check("{}", own.trim_end());
        check(
            "// mine\n{\n\t\"a\": [1, 2,], // that\n\t\"mcpServers\": {\n\t\t/* x */ \"other\": { \"command\": \"}\" },\n\t},\n}\n",
            "// mine\n{\n\t\"a\": [1, 2,], // that\n\t\"mcpServers\": {\n\t\t\"ardent\": {\n\t\t\t\"args\": [\n\t\t\t\t\"mcp\"\n\t\t\t],\n\t\t\t\"command\": \"ardent\"\n\t\t},\n\t\t/* x */ \"other\": { \"command\": \"}\" },\n\t},\n}\n",
        );
        check(
            "{\"mcpServers\": {\"ardent\": {\"command\": \"/old\", \"url\": \"/x\", \"env\": {\"A\": \"b\",}, /* c */ }}, \"z\": null}",
            "{\"mcpServers\": {\"ardent\": {\n      \"args\": [\n        \"mcp\"\n      ],\n      \"command\": \"ardent\",\n      \"env\": {\n        \"A\": \"b\"\n      }\n    }}, \"z\": null}",
        );
    }

    #[test]
    fn a_list_gets_an_entry_once() {
        let entry = json!({ "id": "token", "password": true }).as_object().expect("an object").clone();
        let check = |text: &str, expect: &str| {
            let changed = add(text, "inputs", &entry).expect("it is JSON").expect("it changes");
            assert_eq!(changed, expect);
            assert_eq!(add(&changed, "inputs", &entry), Ok(None), "twice is once");
        };
        let own = "{\n      \"id\": \"token\",\n      \"password\": true\n    }";
        check("{\"a\": 1}", &format!("{{\n  \"inputs\": [\n    {own}\n  ],\"a\": 1}}"));
        check("{\n  \"inputs\": []\n}", &format!("{{\n  \"inputs\": [\n    {own}\n  ]\n}}"));
        check(
            "{\n  \"inputs\": [ // mine\n    {\"id\": \"x\"}\n  ]\n}",
            &format!("{{\n  \"inputs\": [\n    {own}, // mine\n    {{\"id\": \"x\"}}\n  ]\n}}"),
        );
        assert!(add("{\"inputs\": 7}", "inputs", &entry).is_err());
        assert!(add("", "inputs", &entry).is_err());
    }

    #[test]
    fn what_is_no_json_is_left_alone() {
        for (text, line) in [
            ("[]", 1),
            ("{\n\"a\": }", 2),
            ("{\n\n\"mcpServers\": 7}", 3),
            ("{\"mcpServers\": {\"ardent\": 7}}", 1),
            ("{} x", 1),
            ("{\"a\": \"b", 1),
            ("{\"a\" 1}", 1),
            ("/* x", 1),
            ("{\"a\": 1 \"b\": 2}", 1),
            ("{\"ä\\\": ö", 1),
        ] {
            assert_eq!(set(text, "mcpServers", "ardent", &entry(), &["url"]).expect_err(text).line, line, "{text}");
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(set(&deep, "mcpServers", "ardent", &entry(), &[]).is_err());
    }
}
