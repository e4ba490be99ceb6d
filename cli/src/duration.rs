//! Durations, rates and sizes as people type them.

use ardent_statement_log::LOG_LEN_MIN;

/// The longest time that the server takes: ten years.
const SECONDS_MAX: u64 = 10 * 366 * 86_400;

/// Seconds of `90`, `90s`, `5m`, `2h`, `3d`, `1w`; `never` is 0.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    if text == "never" {
        return Ok(0);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(format!("{text:?} is not a duration: write 90s, 5m, 2h, 3d, 1w or never")),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is not a duration: write 90s, 5m, 2h, 3d, 1w or never"))
}

/// Seconds of a time after which something is to happen; only `never`, and no `0s`, is 0.
pub fn parse_lifetime(text: &str) -> Result<u64, String> {
    match parse_seconds(text)? {
        0 if text != "never" => Err(format!("{text:?} is no time at all: write 90s, 5m, 2h, 3d, 1w or never")),
        seconds => bounded(text, seconds),
    }
}

/// Seconds of a time for which history is kept: not none.
pub fn parse_retention(text: &str) -> Result<u64, String> {
    let seconds = parse_seconds(text)
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?} is no time to keep history for: write 2h, 7d or 4w"))?;
    bounded(text, seconds)
}

fn bounded(text: &str, seconds: u64) -> Result<u64, String> {
    if seconds <= SECONDS_MAX { Ok(seconds) } else { Err(format!("{text:?} is too long: the longest is ten years")) }
}

/// The same for one branch; `default` is 0.
pub fn parse_own_retention(text: &str) -> Result<u64, String> {
    if text == "default" { Ok(0) } else { parse_retention(text) }
}

/// Bytes per second of `500k`, `20M`, `1G` or a plain number.
pub fn parse_byte_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate: write bytes per second such as 500k, 20M or 1G");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|rate| *rate > 0).ok_or_else(wrong)
}

/// Bytes of `500kB`, `20MB`, `1G` or a plain number; `none` is 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    parse_byte_rate(text).map_err(|_| format!("{text:?} is not a size: write bytes such as 500kB, 20MB, 1GB or none"))
}

/// Bytes of a log of statements, as [`parse_size`] has them: `none` is 0, other sizes have to hold the newest segments.
pub fn parse_log_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size @ 1..LOG_LEN_MIN => {
            Err(format!("{size} bytes are too few: the least is {}, or none", bytes_text(LOG_LEN_MIN)))
        }
        size => Ok(size),
    }
}

/// Milliseconds of `500ms`, `30s`, `5m` or a plain number of seconds; `none` is 0.
pub fn parse_milliseconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a duration: write 500ms, 30s, 5m, 2h or none");
    match (text, text.strip_suffix("ms")) {
        ("none", _) => Ok(0),
        ("never", _) => Err(wrong()),
        (_, Some(number)) => number.parse().map_err(|_| wrong()),
        (_, None) => parse_seconds(text).map_err(|_| wrong())?.checked_mul(1000).ok_or_else(wrong),
    }
}

/// Milliseconds of how long something may wait or run; `none` and `never` are 0.
pub fn parse_timeout(text: &str) -> Result<u64, String> {
    if text == "never" { Ok(0) } else { parse_milliseconds(text) }
}

/// A whole number above 0; `none` is 0.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of rows: write a whole number above 0, or none");
    if text == "none" { Ok(0) } else { text.parse().ok().filter(|count| *count > 0).ok_or_else(wrong) }
}

/// `on` or `off`.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}

/// A number of milliseconds for people.
pub fn milliseconds_text(milliseconds: u64) -> String {
    if milliseconds.is_multiple_of(1000) { format!("{} s", milliseconds / 1000) } else { format!("{milliseconds} ms") }
}

/// Bytes of `500M`, `10G`, `2T` or a plain number.
pub fn parse_cache_size(text: &str) -> Result<u64, String> {
    let terabytes = text.strip_suffix(['T', 't']).and_then(|digits| digits.parse::<u64>().ok());
    let size = match terabytes {
        Some(terabytes) => terabytes.checked_mul(1 << 40).filter(|size| *size > 0),
        None => parse_byte_rate(text).ok(),
    };
    size.ok_or_else(|| format!("{text:?} is not a size: write bytes such as 500M, 10G or 2T"))
}

/// Bytes as [`parse_cache_size`] has them, of a cache in memory: in a smaller one the parts of layer files have no room.
pub fn parse_page_cache_size(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 16 << 20;
    let size = parse_cache_size(text)?;
    if size < LEAST {
        return Err(format!("{text:?} is too little to keep pages in: give it 16M or more"));
    }
    if usize::try_from(size).is_err() { Err(format!("{text:?} is more than there can be")) } else { Ok(size) }
}

/// A number of bytes for people.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

const UNITS_OF_TIME: [(u64, &str); 3] = [(86_400, "days"), (3600, "h"), (60, "min")];

/// A time in the largest unit of which it has two.
pub fn seconds_text(seconds: u64) -> String {
    let unit = UNITS_OF_TIME.into_iter().find(|(length, _)| seconds >= 2 * length);
    let (length, name) = unit.unwrap_or((1, "s"));
    format!("{} {name}", seconds / length)
}

/// A time that somebody has set, to the second: in the largest unit of which it has two or more, and nothing besides.
pub fn set_time_text(seconds: u64) -> String {
    let is_whole = |length: u64| seconds >= 2 * length && seconds.is_multiple_of(length);
    let unit = UNITS_OF_TIME.into_iter().find(|(length, _)| is_whole(*length));
    let (length, name) = unit.unwrap_or((1, "s"));
    format!("{} {name}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_people_write_them() {
        assert_eq!((parse_size("1GB"), parse_size("none"), parse_size("8192")), (Ok(1 << 30), Ok(0), Ok(8192)));
        assert!(parse_size("0").is_err() && parse_size("much").is_err());
        assert_eq!((parse_milliseconds("500ms"), parse_milliseconds("30s")), (Ok(500), Ok(30_000)));
        assert_eq!((parse_milliseconds("none"), parse_milliseconds("2m")), (Ok(0), Ok(120_000)));
        assert!(parse_milliseconds("never").is_err() && parse_milliseconds("ms").is_err());
        assert_eq!((parse_count("7"), parse_count("none")), (Ok(7), Ok(0)));
        assert!(parse_count("0").is_err() && parse_switch("maybe").is_err());
        assert_eq!([0, 119, 120, 7199, 200_000].map(seconds_text), ["0 s", "119 s", "2 min", "119 min", "2 days"]);
        let set = [259_200, 600, 7200, 86_400, 5400, 90, 259_201].map(set_time_text);
        assert_eq!(set, ["3 days", "10 min", "2 h", "24 h", "90 min", "90 s", "259201 s"]);
        assert_eq!((milliseconds_text(1500), milliseconds_text(30_000)), ("1500 ms".to_owned(), "30 s".to_owned()));
    }

    #[test]
    fn durations_and_rates() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1w", 604_800), ("never", 0)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for bad in ["", "h", "5x", "-1h", "1h30m", "99999999999999999999w"] {
            assert!(parse_seconds(bad).is_err(), "{bad:?} parsed");
        }
        assert_eq!((parse_retention("7d"), parse_own_retention("default")), (Ok(604_800), Ok(0)));
        assert!(parse_retention("never").is_err() && parse_retention("0").is_err() && parse_own_retention("").is_err());
        assert_eq!((parse_lifetime("8h"), parse_lifetime("never")), (Ok(28_800), Ok(0)));
        for none in ["0", "0s", "00m"] {
            assert!(parse_lifetime(none).is_err_and(|error| error.contains("never")), "{none}");
        }
        for parse in [parse_lifetime, parse_retention, parse_own_retention] {
            assert_eq!(parse("3660d"), Ok(SECONDS_MAX));
            assert!(parse("999999999999d").is_err_and(|error| error.contains("ten years")));
        }
        assert_eq!(parse_byte_rate("20M"), Ok(20 << 20));
        assert!(parse_byte_rate("0").is_err() && parse_byte_rate("x").is_err() && parse_byte_rate("5T").is_err());
        assert_eq!(
            (parse_cache_size("2T"), parse_cache_size("10G"), parse_cache_size("7")),
            (Ok(2 << 40), Ok(10 << 30), Ok(7))
        );
        assert!(
            parse_cache_size("0").is_err()
                && parse_cache_size("T").is_err()
                && parse_cache_size("99999999999T").is_err()
        );
        assert_eq!((parse_page_cache_size("16M"), parse_page_cache_size("4G")), (Ok(16 << 20), Ok(4 << 30)));
        assert!(parse_page_cache_size("15M").is_err_and(|error| error.contains("16M or more")));
        assert_eq!((bytes_text(5).as_str(), bytes_text(1536).as_str()), ("5 B", "1.5 kB"));
    }
}
