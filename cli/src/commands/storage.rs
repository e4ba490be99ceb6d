//! What of the page server's own work fails, as `ardent status` and `ardent doctor` say it.

use super::safekeepers::Concern;

/// Most problems that are shown: a store that cannot be written concerns every branch that is written to.
const SHOWN_MAX: usize = 3;

/// What fails, if anything does.
pub fn concern(problems: &[String]) -> Option<Concern> {
    let shown = &problems[..problems.len().min(SHOWN_MAX)];
    let more = match problems.len() - shown.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (!shown.is_empty()).then(|| Concern {
        message: format!("the page server cannot keep up its store: {}{more}", shown.join("; ")),
        fix: "see whether the store is there, has room and can be written: what fails is tried again, and goes on by itself".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problems_stand_for_all() {
        assert_eq!(concern(&[]), None);
        let check = |count: usize, expect: &str| {
            let problems: Vec<String> = (1..=count).map(|number| format!("branch b{number}: stuck")).collect();
            let message = concern(&problems).map(|concern| concern.message).unwrap_or_default();
            assert_eq!(message, format!("the page server cannot keep up its store: {expect}"));
        };
        check(1, "branch b1: stuck");
        check(3, "branch b1: stuck; branch b2: stuck; branch b3: stuck");
        check(5, "branch b1: stuck; branch b2: stuck; branch b3: stuck; and 2 more");
    }
}
