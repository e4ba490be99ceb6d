//! Durations and rates as people type them.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_rates() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1w", 604_800), ("never", 0)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for bad in ["", "h", "5x", "-1h", "1h30m", "99999999999999999999w"] {
            assert!(parse_seconds(bad).is_err(), "{bad:?} parsed");
        }
        assert_eq!(parse_byte_rate("20M"), Ok(20 << 20));
        assert!(parse_byte_rate("0").is_err() && parse_byte_rate("x").is_err() && parse_byte_rate("5T").is_err());
        assert_eq!((bytes_text(5).as_str(), bytes_text(1536).as_str()), ("5 B", "1.5 kB"));
    }
}
