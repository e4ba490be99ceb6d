//! What commands print, without what differs from run to run.

use serde_json::{Map, Value};

/// Widest line of JSON that is not parted.
const WIDTH: usize = 120;

/// Puts words for times, positions, sizes and made-up names, and numbers from 1 for transactions and processes.
#[derive(Debug, Default)]
pub struct Plain {
    transactions: Vec<u64>,
    processes: Vec<u64>,
}

impl Plain {
    /// A text, line by line. Columns are two blanks apart. Of a rehearsal without the lines that say how much WAL was written, which
    /// others write too, and without the locks of a statement that failed, which are seen or not.
    pub fn text(&self, text: &str) -> String {
        let mut out = String::new();
        let mut has_failed = false;
        for line in text.lines().map(|line| apart(&words(line))) {
            let is_below = line.starts_with("  ");
            has_failed = line.contains("  FAILED after ") || has_failed && is_below;
            let is_by_chance = line == "  writes  SIZE of WAL" || has_failed && line.starts_with("  locks  ");
            if !is_by_chance {
                out.push_str(&line);
                out.push('\n');
            }
        }
        out
    }

    /// A document, parted into lines.
    pub fn document(&mut self, text: &str) -> String {
        let mut out = String::new();
        write(&mut out, &self.value(&parse(text)), 0);
        out.push('\n');
        out
    }

    /// Documents, one a line.
    pub fn lines(&mut self, text: &str) -> String {
        text.lines().map(|line| format!("{}\n", self.value(&parse(line)))).collect()
    }

    fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(fields) if value["state"] == "failed" && value["locks"].is_array() => {
                let mut fields = fields.clone();
                fields.insert("locks".to_owned(), "SEEN".into());
                self.value(&Value::Object(fields))
            }
            Value::Object(fields) => Value::Object(
                fields.iter().map(|(name, value)| (name.clone(), self.field(name, value))).collect::<Map<_, _>>(),
            ),
            Value::Array(values) => Value::Array(values.iter().map(|value| self.value(value)).collect()),
            Value::String(text) => Value::String(words(text)),
            other => other.clone(),
        }
    }

    fn field(&mut self, name: &str, value: &Value) -> Value {
        match (name, value) {
            (_, Value::Null) => Value::Null,
            ("xid", Value::Number(_)) => number_of(&mut self.transactions, value),
            ("pid", Value::Number(_)) => number_of(&mut self.processes, value),
            ("timeline_id", _) => "TIMELINE".into(),
            ("client_address", _) => "ADDRESS".into(),
            ("bytes" | "wal_bytes", Value::Number(_)) => "SIZE".into(),
            ("changed_blocks" | "pages_read_branch_point" | "pages_read_head", Value::Number(_)) => "COUNT".into(),
            (name, Value::Number(_)) if name.ends_with("_us") => "DURATION".into(),
            _ => self.value(value),
        }
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The how manieth it is of those that were seen, from 1.
fn number_of(seen: &mut Vec<u64>, value: &Value) -> Value {
    let wanted = value.as_u64().expect("numbers of transactions and processes are natural");
    let place = seen.iter().position(|one| *one == wanted).unwrap_or_else(|| {
        seen.push(wanted);
        seen.len() - 1
    });
    (place + 1).into()
}

/// JSON in as few lines as fit.
fn write(out: &mut String, value: &Value, indent: usize) {
    let line = value.to_string();
    let (open, close, parts): (char, char, Vec<(String, &Value)>) = match value {
        _ if indent + line.len() <= WIDTH => return out.push_str(&line),
        Value::Object(fields) => (
            '{',
            '}',
            fields.iter().map(|(name, value)| (format!("{}: ", Value::from(name.as_str())), value)).collect(),
        ),
        Value::Array(values) => ('[', ']', values.iter().map(|value| (String::new(), value)).collect()),
        _ => return out.push_str(&line),
    };
    out.push(open);
    for (number, (name, value)) in parts.iter().enumerate() {
        out.push_str(if number == 0 { "\n" } else { ",\n" });
        out.push_str(&format!("{:1$}{name}", "", indent + 1));
        write(out, value, indent + 1);
    }
    out.push_str(&format!("\n{:indent$}{close}", ""));
}

/// With every run of blanks two blanks long: how long it is depends on how long durations are.
fn apart(line: &str) -> String {
    let mut out = String::new();
    let mut blanks = 0;
    for letter in line.trim_end().chars() {
        if letter == ' ' {
            blanks += 1;
            continue;
        }
        out.push_str(&"  "[..blanks.min(2)]);
        blanks = 0;
        out.push(letter);
    }
    out
}

/// With words for what differs.
fn words(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(letter) = rest.chars().next() {
        let found = if before.is_ascii_alphanumeric() || before == '-' { None } else { varying(rest) };
        let (word, len) = found.unwrap_or((&rest[..letter.len_utf8()], letter.len_utf8()));
        out.push_str(word);
        before = rest[..len].chars().next_back().unwrap_or(' ');
        rest = &rest[len..];
    }
    out
}

/// Which word stands for what a text begins with, and how long that is.
fn varying(text: &str) -> Option<(&'static str, usize)> {
    let found = time(text)
        .map(|len| ("TIME", len))
        .or_else(|| position(text).map(|len| ("LSN", len)))
        .or_else(|| measure(text))
        .or_else(|| behind("rehearsal-", text).map(|len| ("rehearsal-NAME", len)))
        .or_else(|| behind("transaction ", text).filter(|_| is_numbered(text)).map(|len| ("transaction XID", len)))?;
    let goes_on = text[found.1..].chars().next().is_some_and(|letter| letter.is_ascii_alphanumeric());
    (!goes_on).then_some(found)
}

fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !of(letter)).unwrap_or(text.len())
}

/// `2026-01-31T12:00:00.123Z`, or with a blank and without a zone.
fn time(text: &str) -> Option<usize> {
    let shape = "0000-00-00 00:00:00";
    let fits = |(letter, wanted): (char, char)| match wanted {
        '0' => letter.is_ascii_digit(),
        ' ' => letter == ' ' || letter == 'T',
        other => letter == other,
    };
    if text.chars().count() < shape.len() || !text.chars().zip(shape.chars()).all(fits) {
        return None;
    }
    let mut len = shape.len();
    if text[len..].starts_with('.') {
        len += 1 + run(&text[len + 1..], |letter| letter.is_ascii_digit());
    }
    Some(len + usize::from(text[len..].starts_with('Z')))
}

/// `0/16B3748`.
fn position(text: &str) -> Option<usize> {
    let hex = |letter: char| letter.is_ascii_digit() || ('A'..='F').contains(&letter);
    let high = run(text, hex);
    let low = run(text[high..].strip_prefix('/')?, hex);
    (high > 0 && low == 8).then_some(high + 1 + low)
}

/// `1.5 ms`, `2 MB`.
fn measure(text: &str) -> Option<(&'static str, usize)> {
    let number = run(text, |letter| letter.is_ascii_digit() || letter == '.');
    let unit = text[number..].strip_prefix(' ')?;
    let len = run(unit, |letter| letter.is_ascii_alphabetic());
    let word = match &unit[..len] {
        "us" | "ms" | "s" | "min" => "DURATION",
        "B" | "kB" | "MB" | "GB" | "bytes" => "SIZE",
        _ => return None,
    };
    (number > 0).then_some((word, number + 1 + len))
}

/// A beginning with a name behind it.
fn behind(begin: &str, text: &str) -> Option<usize> {
    let rest = text.strip_prefix(begin)?;
    let len = run(rest, |letter| letter.is_ascii_alphanumeric() || letter == '-');
    (len > 0).then_some(begin.len() + len)
}

/// `transaction 733`, and not `transaction block`.
fn is_numbered(text: &str) -> bool {
    text.split(' ').nth(1).is_some_and(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))
}

#[test]
fn what_differs_from_run_to_run_has_a_word() {
    let plain = Plain::default();
    assert_eq!(
        plain.text("2026-01-31 12:00:00.123  app     1.5 ms    3  a     update t set a = 5\n rehearsal-x-7 at 0/16B37481: 12 MB, transaction 733, transaction block"),
        "TIME  app  DURATION  3  a  update t set a = 5\n rehearsal-NAME at LSN: SIZE, transaction XID, transaction block\n"
    );
    let rehearsal = "1  begin  1 ms\n     writes   5 B of WAL\n2  drop  FAILED after 1 ms\n     locks    SHARE on t\n     error    x\n\n3  x  1 ms\n     locks    y";
    let expect = "1  begin  DURATION\n2  drop  FAILED after DURATION\n  error  x\n\n3  x  DURATION\n  locks  y\n";
    assert_eq!(plain.text(rehearsal), expect);
    let mut plain = Plain::default();
    assert_eq!(plain.document(r#"{"state":"failed","locks":[]}"#), "{\"locks\":\"SEEN\",\"state\":\"failed\"}\n");
    let line = r#"{"xid":77,"pid":9,"a":["2026-01-31T12:00:00.1Z","0/16B37481","c12@x"],"held_us":5,"n":5}"#;
    let expect = r#"{"a":["TIME","LSN","c12@x"],"held_us":"DURATION","n":5,"pid":1,"xid":1}"#;
    assert_eq!(plain.document(line), format!("{expect}\n"));
    assert_eq!(plain.lines(r#"{"xid":78,"pid":9}"#), "{\"pid\":1,\"xid\":2}\n");
}
