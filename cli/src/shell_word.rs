//! Paths as a shell takes them, in commands to be copied.

use std::path::Path;

/// `path` as one word of a shell's.
pub fn shell_word(path: impl AsRef<Path>) -> String {
    let text = path.as_ref().display().to_string();
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+:=@,%".contains(letter);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        let check = |path: &str, expect: &str| assert_eq!(shell_word(path), expect);
        check("/srv/a-1/safekeeper_2", "/srv/a-1/safekeeper_2");
        check("/srv/my data", "'/srv/my data'");
        check("/srv/it's; $HOME", r"'/srv/it'\''s; $HOME'");
        check("/srv/größe", "/srv/größe");
        check("", "''");
    }
}
