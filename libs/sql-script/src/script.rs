//! The file and its statements.

use std::fmt;
use std::ops::Range;

/// Longest text of a statement, or of what is wrong with one, in messages.
const EXCERPT_LEN_MAX: usize = 60;

/// A file that cannot be sent as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It is no text.
    #[error("line {line}: the file is not UTF-8")]
    NotText {
        /// The first line that is not, from 1.
        line: usize,
    },
    /// A command for psql, not for the server.
    #[error("line {line}: {command} is a command of psql, and not for the server")]
    MetaCommand {
        /// Where, from 1.
        line: usize,
        /// What is there.
        command: String,
    },
    /// Data, for psql to send.
    #[error("line {line}: COPY ... FROM STDIN takes its rows from psql")]
    CopyData {
        /// Where the statement begins, from 1.
        line: usize,
    },
    /// A quote or a comment without an end.
    #[error("line {line}: {what} that begins here has no end")]
    Unterminated {
        /// Where it begins, from 1.
        line: usize,
        /// What.
        what: Quote,
    },
}

/// What can be left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quote {
    /// `'...'`
    String,
    /// `"..."`
    Identifier,
    /// `$tag$...$tag$`
    Dollar,
    /// `/* ... */`
    Comment,
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quote::String => "a string",
            Quote::Identifier => "a quoted identifier",
            Quote::Dollar => "a dollar-quoted string",
            Quote::Comment => "a comment",
        })
    }
}

/// What becomes of psql's own commands (`\\i file`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsqlCommands {
    /// They are an error.
    Refused,
    /// Those between statements are left out, as far as their line goes; one within a statement is an error.
    Skipped,
}

/// A file of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    text: String,
    /// Bytes of each statement, from its first word to before its semicolon.
    statements: Vec<Range<usize>>,
}

impl Script {
    /// Parts a file. What is wrong with it is said before anything is run.
    pub fn parse(bytes: &[u8], commands: PsqlCommands) -> Result<Script, ScriptError> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let text = std::str::from_utf8(bytes)
            .map_err(|error| ScriptError::NotText { line: line_of(&bytes[..error.valid_up_to()]) })?;
        let statements = Splitter::new(text, commands).statements()?;
        Ok(Script { text: text.to_owned(), statements })
    }

    /// How many statements there are.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// All of them, in order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().map(|range| &self.text[range.clone()])
    }

    /// A statement as it is sent.
    pub fn statement(&self, number: usize) -> &str {
        &self.text[self.statements[number].clone()]
    }

    /// The line on which a statement begins, from 1.
    pub fn line(&self, number: usize) -> usize {
        line_of(&self.text.as_bytes()[..self.statements[number].start])
    }

    /// Line and column in the file, both from 1, of a character of a statement, which Postgres counts from 1.
    pub fn place(&self, number: usize, character: usize) -> (usize, usize) {
        let statement = self.statement(number);
        let before = statement.char_indices().nth(character.saturating_sub(1)).map_or(statement.len(), |(at, _)| at);
        let before = &self.text[..self.statements[number].start + before];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (line_of(before.as_bytes()), before[line_start..].chars().count() + 1)
    }
}

fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Reads a text from front to back.
struct Splitter<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    commands: PsqlCommands,
    found: Vec<Range<usize>>,
    statement: Begun,
}

/// What is known of the statement that is being read.
#[derive(Default)]
struct Begun {
    /// Where its first word is.
    start: Option<usize>,
    /// Open parentheses: a rule's statements are parted within them.
    parentheses: usize,
    /// Its first words, as far as they say whether it makes a routine.
    head: Vec<String>,
    /// The last word.
    last: String,
    /// Open `BEGIN ATOMIC` and `CASE` of a routine's body, which holds statements.
    blocks: usize,
    copies_stdin: bool,
}

impl Begun {
    fn word(&mut self, word: &str) {
        let word = word.to_ascii_uppercase();
        if self.head.len() < 4 {
            self.head.push(word.clone());
        }
        if self.parentheses == 0 && self.makes_routine() {
            match word.as_str() {
                "BEGIN" => self.blocks += 1,
                "CASE" if self.blocks > 0 => self.blocks += 1,
                "END" => self.blocks = self.blocks.saturating_sub(1),
                _ => {}
            }
        }
        let is_copy = self.head.first().is_some_and(|first| first == "COPY");
        self.copies_stdin |= is_copy && self.parentheses == 0 && self.last == "FROM" && word == "STDIN";
        self.last = word;
    }

    fn makes_routine(&self) -> bool {
        let words: Vec<&str> = self.head.iter().map(String::as_str).collect();
        matches!(
            words[..],
            ["CREATE", "FUNCTION" | "PROCEDURE", ..] | ["CREATE", "OR", "REPLACE", "FUNCTION" | "PROCEDURE"]
        )
    }
}

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl<'a> Splitter<'a> {
    fn new(text: &'a str, commands: PsqlCommands) -> Splitter<'a> {
        Splitter { text, bytes: text.as_bytes(), at: 0, commands, found: Vec::new(), statement: Begun::default() }
    }

    fn statements(mut self) -> Result<Vec<Range<usize>>, ScriptError> {
        while let Some(&byte) = self.bytes.get(self.at) {
            let rest = &self.bytes[self.at..];
            match byte {
                byte if byte.is_ascii_whitespace() || byte == 0x0b => self.at += 1,
                _ if rest.starts_with(b"--") => self.skip_line(),
                _ if rest.starts_with(b"/*") => self.comment()?,
                b'\\' if self.commands == PsqlCommands::Skipped && self.statement.start.is_none() => self.skip_line(),
                b'\\' => return Err(self.meta_command()),
                b';' if self.statement.parentheses == 0 && self.statement.blocks == 0 => {
                    self.end()?;
                    self.at += 1;
                }
                _ => {
                    self.statement.start.get_or_insert(self.at);
                    self.token(byte)?;
                }
            }
        }
        // psql too runs what has no semicolon at the end of a file.
        self.end()?;
        Ok(self.found)
    }

    /// Ends the statement here, if one has begun.
    fn end(&mut self) -> Result<(), ScriptError> {
        let statement = std::mem::take(&mut self.statement);
        let Some(start) = statement.start else { return Ok(()) };
        if statement.copies_stdin {
            return Err(ScriptError::CopyData { line: line_of(&self.bytes[..start]) });
        }
        let end = start + self.text[start..self.at].trim_end().len();
        self.found.push(start..end);
        Ok(())
    }

    fn token(&mut self, byte: u8) -> Result<(), ScriptError> {
        match byte {
            b'\'' => return self.quoted(b'\'', Quote::String, false),
            b'"' => return self.quoted(b'"', Quote::Identifier, false),
            b'$' => return self.dollar(),
            b'(' => self.statement.parentheses += 1,
            b')' => self.statement.parentheses = self.statement.parentheses.saturating_sub(1),
            byte if begins_word(byte) => return self.word(),
            // `1e5` holds no word, and `$` in it begins no quote.
            byte if byte.is_ascii_digit() => {
                self.skip_while(continues_word);
                return Ok(());
            }
            _ => {}
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<(), ScriptError> {
        let start = self.at;
        self.skip_while(continues_word);
        let word = &self.text[start..self.at];
        if word.eq_ignore_ascii_case("e") && self.bytes.get(self.at) == Some(&b'\'') {
            return self.quoted(b'\'', Quote::String, true);
        }
        self.statement.word(word);
        Ok(())
    }

    fn skip_while(&mut self, of: impl Fn(u8) -> bool) {
        self.at += self.bytes[self.at..].iter().take_while(|byte| of(**byte)).count();
    }

    fn skip_line(&mut self) {
        self.skip_while(|byte| byte != b'\n');
    }

    /// From a quote to its end. Two quotes stand for one; `escapes`: a backslash takes the next character along.
    fn quoted(&mut self, quote: u8, what: Quote, escapes: bool) -> Result<(), ScriptError> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(self.unterminated(start, what)),
                Some(b'\\') if escapes => self.at += 2,
                Some(&byte) if byte == quote && self.bytes.get(self.at + 1) == Some(&quote) => self.at += 2,
                Some(&byte) if byte == quote => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// A dollar-quoted string, or a dollar that begins none (`$1`).
    fn dollar(&mut self) -> Result<(), ScriptError> {
        let start = self.at;
        let rest = &self.bytes[start + 1..];
        let name = match rest.first() {
            Some(&first) if begins_word(first) => {
                rest.iter().take_while(|byte| continues_word(**byte) && **byte != b'$').count()
            }
            _ => 0,
        };
        if rest.get(name) != Some(&b'$') {
            self.at += 1;
            return Ok(());
        }
        let tag = &self.text[start..start + name + 2];
        let body = start + tag.len();
        match self.text[body..].find(tag) {
            Some(end) => {
                self.at = body + end + tag.len();
                Ok(())
            }
            None => Err(self.unterminated(start, Quote::Dollar)),
        }
    }

    /// Comments may hold comments.
    fn comment(&mut self) -> Result<(), ScriptError> {
        let start = self.at;
        let mut open = 0;
        loop {
            let rest = &self.bytes[self.at..];
            match rest {
                [] => return Err(self.unterminated(start, Quote::Comment)),
                [b'/', b'*', ..] => {
                    open += 1;
                    self.at += 2;
                }
                [b'*', b'/', ..] => {
                    open -= 1;
                    self.at += 2;
                    if open == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    fn unterminated(&self, start: usize, what: Quote) -> ScriptError {
        ScriptError::Unterminated { line: line_of(&self.bytes[..start]), what }
    }

    fn meta_command(&self) -> ScriptError {
        let line = line_of(&self.bytes[..self.at]);
        let text = self.text[self.at..].lines().next().unwrap_or_default();
        ScriptError::MetaCommand { line, command: text.trim().chars().take(EXCERPT_LEN_MAX).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &[&str]) {
        let script =
            Script::parse(text.as_bytes(), PsqlCommands::Refused).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let found: Vec<&str> = (0..script.len()).map(|number| script.statement(number)).collect();
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn statements_are_parted_as_psql_parts_them() {
        check("select 1; select 2", &["select 1", "select 2"]);
        check(" ;;\n; select 1 ;; ", &["select 1"]);
        check("begin;\nalter table t add c int;\ncommit;\n", &["begin", "alter table t add c int", "commit"]);
        check("\u{feff}select 1", &["select 1"]);
        // Comments.
        check("-- a; b\nselect 1 -- c;\n; -- end", &["select 1 -- c;"]);
        check("/* a; /* b; */ c; */ select /* ; */ 1; /* end */", &["select /* ; */ 1"]);
        check("select 1--2;\n+3; select 4", &["select 1--2;\n+3", "select 4"]);
        // Quotes.
        check("select 'a;''b;', \"c;\"\"d;\"; select 2", &["select 'a;''b;', \"c;\"\"d;\"", "select 2"]);
        check(r"select 'a\'; select 'b'", &[r"select 'a\'", "select 'b'"]);
        check(r"select E'a\';', e'\\'; select 2", &[r"select E'a\';', e'\\'", "select 2"]);
        check(
            r"select U&'a\'; select n'\', tree'\'; select 3",
            &[r"select U&'a\'", r"select n'\', tree'\'", "select 3"],
        );
        check("select '--', '/*', '$$', \"--\"; select 2", &["select '--', '/*', '$$', \"--\"", "select 2"]);
        // Dollars.
        check("do $$ begin; '; end $$; select 2", &["do $$ begin; '; end $$", "select 2"]);
        check("do $a$ $$;$$ $b$;$b$ $a$; select 2", &["do $a$ $$;$$ $b$;$b$ $a$", "select 2"]);
        check(
            "prepare p as select $1; select a$b$c; select $1$2",
            &["prepare p as select $1", "select a$b$c", "select $1$2"],
        );
        check("do $ü$;$ü$; select 2", &["do $ü$;$ü$", "select 2"]);
        // A rule's statements, and a routine's.
        check(
            "create rule r as on insert to t do (select 1; select 2); select 3",
            &["create rule r as on insert to t do (select 1; select 2)", "select 3"],
        );
        check(
            "create or replace function f() returns int begin atomic select 1; select case when true then 2 end; end; select 3",
            &[
                "create or replace function f() returns int begin atomic select 1; select case when true then 2 end; end",
                "select 3",
            ],
        );
        check(
            "create procedure p(a int default (1)) begin atomic; insert into t values (1); end; end; begin",
            &["create procedure p(a int default (1)) begin atomic; insert into t values (1); end", "end", "begin"],
        );
        check(
            "create table begin_it (a int); select case when true then 1 end; select 2",
            &["create table begin_it (a int)", "select case when true then 1 end", "select 2"],
        );
        check(
            "create index concurrently i on t (a); copy t to stdout",
            &["create index concurrently i on t (a)", "copy t to stdout"],
        );
    }

    #[test]
    fn a_dumps_own_commands_are_left_out() {
        let skipped = |text: &str| Script::parse(text.as_bytes(), PsqlCommands::Skipped);
        let script = skipped("\\restrict x;y\nset a = 1;\n\n\\connect \"b c\"\nselect '\\i';\n\\unrestrict x")
            .expect("a script");
        assert_eq!(script.statements().collect::<Vec<_>>(), ["set a = 1", "select '\\i'"]);
        assert_eq!(script.line(1), 5);
        let within = skipped("select 1\n\\gset\n");
        assert_eq!(within, Err(ScriptError::MetaCommand { line: 2, command: "\\gset".to_owned() }));
        assert!(skipped("\\i x").is_ok_and(|script| script.is_empty()));
    }

    #[test]
    fn what_cannot_be_sent_is_named_with_its_line() {
        let error = |text: &str| Script::parse(text.as_bytes(), PsqlCommands::Refused).expect_err("it is refused");
        let meta = |line, command: &str| ScriptError::MetaCommand { line, command: command.to_owned() };
        assert_eq!(error("select 1;\n\\i other.sql\nselect 2;"), meta(2, "\\i other.sql"));
        assert_eq!(error("select 1 \\gset\n"), meta(1, "\\gset"));
        assert_eq!(error("\n\ncopy t (a) from stdin;\n1\n\\.\n"), ScriptError::CopyData { line: 3 });
        for (text, line, what) in [
            ("select 1;\nselect 'a;\n", 2, Quote::String),
            ("select e'\\'", 1, Quote::String),
            ("\nselect \"a", 2, Quote::Identifier),
            ("do $a$ begin end $b$", 1, Quote::Dollar),
            ("/* /* */\nselect 1", 1, Quote::Comment),
        ] {
            assert_eq!(error(text), ScriptError::Unterminated { line, what }, "{text}");
        }
        for text in ["", "  -- nothing\n", ";;"] {
            assert!(Script::parse(text.as_bytes(), PsqlCommands::Refused).is_ok_and(|script| script.is_empty()));
        }
        assert_eq!(Script::parse(b"select 1;\n\xff", PsqlCommands::Refused), Err(ScriptError::NotText { line: 2 }));
        assert_eq!(
            error("select 1;\n\\i other.sql").to_string(),
            "line 2: \\i other.sql is a command of psql, and not for the server"
        );
    }

    #[test]
    fn places_are_those_of_the_file() {
        let script = Script::parse("-- é\nselect 1;\n  select 'é',\n  wrong;".as_bytes(), PsqlCommands::Refused)
            .expect("a script");
        assert_eq!((script.line(0), script.line(1)), (2, 3));
        // Character 15 is the first of "wrong".
        assert_eq!(script.statement(1).chars().nth(14), Some('w'));
        assert_eq!(script.place(1, 15), (4, 3));
        assert_eq!(script.place(1, 1), (3, 3));
        assert_eq!(script.place(1, 1000), (4, 8), "past its end");
    }

    /// Pieces that a statement can be made of, none of which ends it.
    fn piece() -> impl Strategy<Value = String> {
        let quoted = "[a-z;$\"/* -]{0,8}";
        prop_oneof![
            Just("select".to_owned()),
            Just("x$y$z".to_owned()),
            Just("$1".to_owned()),
            Just("::".to_owned()),
            quoted.prop_map(|text| format!("'{text}'")),
            quoted.prop_map(|text| format!("E'{text}\\'{text}'")),
            "[a-z;$'/* -]{0,8}".prop_map(|text| format!("\"{text}\"")),
            "[a-z;'\"/* -]{0,8}".prop_map(|text| format!("$q${text}$q$")),
            "[a-z;'\"/* -]{0,8}".prop_map(|text| format!("$${text}$$")),
            "[a-z;'\"$]{0,8}".prop_map(|text| format!("/*{text}/*;*/*/")),
            "[a-z;'\"$*/-]{0,8}".prop_map(|text| format!("--{text}\n")),
            "[a-z;]{0,8}".prop_map(|text| format!("({text})")),
        ]
    }

    proptest! {
        #[test]
        fn what_was_put_together_is_taken_apart(statements in prop::collection::vec(prop::collection::vec(piece(), 0..6), 1..6)) {
            let statements: Vec<String> = statements.into_iter().map(|pieces| format!("a {} z", pieces.join(" "))).collect();
            let script = Script::parse(statements.join(";\n").as_bytes(), PsqlCommands::Refused).expect("a script");
            let found: Vec<&str> = (0..script.len()).map(|number| script.statement(number)).collect();
            prop_assert_eq!(found, statements);
        }

        #[test]
        fn nothing_panics_and_every_place_is_in_the_file(text in "[a-z'\"$;()/*\\\\\n é-]{0,40}", character in 0..60usize) {
            for commands in [PsqlCommands::Refused, PsqlCommands::Skipped] {
                let Ok(script) = Script::parse(text.as_bytes(), commands) else { continue };
                for number in 0..script.len() {
                    let (line, column) = script.place(number, character);
                    let found = text.split('\n').nth(line - 1).map(|line| line.chars().count());
                    prop_assert!(found.is_some_and(|length| column <= length + 1), "{line}:{column}");
                }
            }
        }
    }
}
