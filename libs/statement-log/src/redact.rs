//! Takes passwords out of what is kept.
//!
//! It looks at the text and not at its grammar: a statement with a mistake in it, or one within a `DO` block's string, holds the
//! password as well. So it takes out more than passwords where something else is called one.

use std::borrow::Cow;

/// Stands for what was taken out.
const INSTEAD: &[u8] = b"***";
/// A secret that is shorter is not looked for in messages: it would be found in every word.
const SECRET_LEN_MIN: usize = 4;

/// A text without its secrets, and the secrets.
#[derive(Debug)]
pub(crate) struct Redacted<'a> {
    pub(crate) text: Cow<'a, [u8]>,
    secrets: Vec<Vec<u8>>,
}

/// Takes out string literals that follow the word `password` (with `=`, `:=`, `:`, a type or nothing between), `password=` in
/// connection strings, and passwords in URLs.
pub(crate) fn redact(text: &[u8]) -> Redacted<'_> {
    let mut secrets = Vec::new();
    let mut out: Vec<u8> = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while at < text.len() {
        let found = match text[at] {
            b'p' | b'P' if starts_with_word(&text[at..], b"password") && !is_literal(text, at) => {
                secret_after(text, at + b"password".len())
            }
            b':' if text[at..].starts_with(b"://") => secret_of_url(text, at + 3),
            _ => None,
        };
        match found.filter(|range| !range.is_empty()) {
            Some(range) => {
                out.extend_from_slice(&text[copied..range.start]);
                out.extend_from_slice(INSTEAD);
                secrets.push(text[range.clone()].to_vec());
                copied = range.end;
                at = range.end;
            }
            None => at += 1,
        }
    }
    if secrets.is_empty() {
        return Redacted { text: Cow::Borrowed(text), secrets };
    }
    out.extend_from_slice(&text[copied..]);
    Redacted { text: Cow::Owned(out), secrets }
}

impl Redacted<'_> {
    /// Takes the same secrets out of another text: an error's message quotes what it is about.
    pub(crate) fn also<'b>(&self, text: &'b [u8]) -> Cow<'b, [u8]> {
        let mut text = Cow::Borrowed(text);
        for secret in self.secrets.iter().filter(|secret| secret.len() >= SECRET_LEN_MIN) {
            while let Some(at) = find(&text, secret) {
                text = Cow::Owned([&text[..at], INSTEAD, &text[at + secret.len()..]].concat());
            }
        }
        text
    }
}

fn starts_with_word(text: &[u8], word: &[u8]) -> bool {
    text.len() >= word.len() && text[..word.len()].eq_ignore_ascii_case(word)
}

/// Whether the word `password` at `at` is all of a literal: what follows its quote is no secret.
fn is_literal(text: &[u8], at: usize) -> bool {
    at > 0 && text[at - 1] == b'\'' && text.get(at + b"password".len()) == Some(&b'\'')
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// What follows the word `password`, which ends at `at`, if that is a secret.
fn secret_after(text: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let mut next = at;
    let mut equals = false;
    // A name in quotes may end here, or a JSON key.
    while let Some(byte) = text.get(next) {
        match byte {
            b'=' => equals = true,
            b' ' | b'\t' | b'\n' | b'\r' | b':' | b'"' => {}
            _ => break,
        }
        next += 1;
    }
    // E'...', N'...', U&'...'.
    let prefix = match text.get(next..)? {
        [b'e' | b'E' | b'n' | b'N', b'\'', ..] => 1,
        [b'u' | b'U', b'&', b'\'', ..] => 2,
        _ => 0,
    };
    next += prefix;
    match text.get(next)? {
        b'\'' => Some(quoted(text, next)),
        b'$' => dollar_quoted(text, next),
        // In a connection string. Elsewhere it is a name or a number.
        _ if equals && text.get(at) == Some(&b'=') => {
            let len =
                text[next..].iter().position(|byte| matches!(byte, b' ' | b'\'' | b'"' | b'&' | b'\n' | b';' | b')'));
            Some(next..len.map_or(text.len(), |len| next + len))
        }
        _ => None,
    }
}

/// The content of a literal whose first quote is at `at`. Within another literal, quotes are doubled.
fn quoted(text: &[u8], at: usize) -> std::ops::Range<usize> {
    let run_at = |at: usize| text[at..].iter().take_while(|byte| **byte == b'\'').count();
    let quotes = run_at(at);
    // Two that nothing follows are an empty literal; an odd number is one, and characters of the content.
    let is_nested = quotes.is_power_of_two() && text.get(at + quotes).is_some_and(|byte| !b" \t\r\n,;)".contains(byte));
    if quotes == 2 && !is_nested {
        return at + 1..at + 1;
    }
    let delimiter = if is_nested { quotes } else { 1 };
    let start = at + delimiter;
    let mut end = start;
    while end < text.len() {
        match text[end] {
            b'\\' => end += 2,
            b'\'' => {
                let run = run_at(end);
                // Doubled, it is a character of the content.
                let escaped = run / (2 * delimiter) * (2 * delimiter);
                if run - escaped >= delimiter {
                    return start..end + escaped;
                }
                end += run;
            }
            _ => end += 1,
        }
    }
    start..text.len()
}

fn dollar_quoted(text: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let tag_len = text[at + 1..].iter().position(|byte| *byte == b'$')? + 2;
    let tag = &text[at..at + tag_len];
    if !tag[1..tag_len - 1].iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') || tag[1].is_ascii_digit()
    {
        return None;
    }
    let start = at + tag_len;
    Some(start..find(&text[start..], tag).map_or(text.len(), |len| start + len))
}

/// The password of `://user:password@`, after the slashes.
fn secret_of_url(text: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let ends = |byte: &u8| matches!(byte, b' ' | b'/' | b'\'' | b'"' | b'\n' | b'@');
    let len = text[at..].iter().position(ends)?;
    let user = &text[at..at + len];
    let colon = user.iter().position(|byte| *byte == b':')?;
    (text[at + len] == b'@').then_some(at + colon + 1..at + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: &str) {
        assert_eq!(String::from_utf8_lossy(&redact(text.as_bytes()).text), expect, "{text}");
    }

    #[test]
    fn passwords_of_roles_servers_and_connections_are_taken_out() {
        check("alter role bob password 'hunter2'", "alter role bob password '***'");
        check(
            "CREATE USER bob WITH ENCRYPTED PASSWORD 'it''s' LOGIN",
            "CREATE USER bob WITH ENCRYPTED PASSWORD '***' LOGIN",
        );
        check(
            "alter role bob password E'a\\'b' valid until '2030-01-01'",
            "alter role bob password E'***' valid until '2030-01-01'",
        );
        check("alter role bob password $q$a'b$q$; select 1", "alter role bob password $q$***$q$; select 1");
        check(
            "create user mapping for bob server s options (user 'u', password 'x y')",
            "create user mapping for bob server s options (user 'u', password '***')",
        );
        check(
            "create subscription s connection 'host=h password=geheim dbname=d' publication p",
            "create subscription s connection 'host=h password=*** dbname=d' publication p",
        );
        check(
            "select dblink_connect('postgresql://bob:geheim@h/d')",
            "select dblink_connect('postgresql://bob:***@h/d')",
        );
        check("alter role bob password 'cut off in the mid", "alter role bob password '***");
    }

    #[test]
    fn also_where_the_grammar_is_no_help() {
        check("alter rloe bob password 'hunter2'", "alter rloe bob password '***'");
        check(
            "do $$ begin execute 'alter role bob password ''hunter2'''; end $$",
            "do $$ begin execute 'alter role bob password ''***'''; end $$",
        );
        check("update users set password = 'x' where id = 1", "update users set password = '***' where id = 1");
        check("alter role bob password'hunter2'", "alter role bob password'***'");
        check("select '{\"password\": \"x\"}'", "select '{\"password\": \"x\"}'");
    }

    #[test]
    fn what_is_none_stays() {
        for text in [
            "select password from users",
            "alter role bob password null",
            "select 'password', 'x'",
            "select * from users where password = $1",
            "alter role bob password ''",
            "select 'https://example.com/a:b@c'",
            "",
        ] {
            let redacted = redact(text.as_bytes());
            assert!(matches!(redacted.text, Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn messages_lose_the_same() {
        let redacted = redact(b"alter role bob password 'hunter2' x");
        assert_eq!(redacted.also(b"syntax error at or near \"hunter2\"").as_ref(), b"syntax error at or near \"***\"");
        assert_eq!(redacted.also(b"syntax error").as_ref(), b"syntax error");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ps'$:=/@E\\\\ a-c]{0,20}(password|PassWord|://)?[='$:@& E\\\\a-c\u{e4}]{0,30}") {
            let redacted = redact(text.as_bytes());
            redacted.also(text.as_bytes());
        }
    }
}
