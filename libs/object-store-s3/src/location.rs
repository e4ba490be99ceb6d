//! Where a store is: `s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path-style=true&profile=NAME`.

use std::fmt;

use ardent_object_store::NAME_LEN_MAX;

/// Longest key that S3 takes, in bytes.
const KEY_LEN_MAX: usize = 1024;

/// A bucket, a prefix in it, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// Bucket.
    pub bucket: String,
    /// Empty, or ending in `/`: what the names of objects follow.
    pub prefix: String,
    /// Server, for what is not AWS.
    pub endpoint: Option<String>,
    /// Region; without it, what the environment or the profile says.
    pub region: Option<String>,
    /// The bucket in the path and not in the host name. Unless said: yes with an endpoint, no without.
    pub path_style: bool,
    /// Profile in the shared configuration files.
    pub profile: Option<String>,
}

/// The text names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Another beginning.
    #[error("{0:?} does not begin with s3://; write s3://BUCKET/PREFIX?endpoint=URL&region=NAME")]
    Scheme(String),
    /// The bucket's name.
    #[error("{0:?} is no name of a bucket: 3 to 63 lower-case letters, digits, '-' and '.'")]
    Bucket(String),
    /// The prefix.
    #[error(
        "{0:?} can't be a prefix: parts of letters, digits, '_', '-' and '.', not beginning with '.', joined by '/'"
    )]
    Prefix(String),
    /// A parameter that means nothing.
    #[error("{0:?} is no parameter of a store; there are endpoint, region, path-style and profile")]
    Parameter(String),
    /// A parameter's value.
    #[error("{value:?} is no value of {parameter}: {expected}")]
    Value {
        /// Parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl S3Location {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<S3Location, LocationError> {
        let rest = url.strip_prefix("s3://").ok_or_else(|| LocationError::Scheme(url.to_owned()))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        check_bucket(bucket)?;
        let mut location = S3Location {
            bucket: bucket.to_owned(),
            prefix: checked_prefix(prefix)?,
            endpoint: None,
            region: None,
            path_style: false,
            profile: None,
        };
        let mut path_style = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (parameter, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value);
            match parameter {
                "endpoint" => location.endpoint = Some(checked_endpoint(value)?),
                "region" => location.region = Some(not_empty("region", value)?),
                "profile" => location.profile = Some(not_empty("profile", value)?),
                "path-style" => path_style = Some(parse_bool("path-style", value)?),
                _ => return Err(LocationError::Parameter(parameter.to_owned())),
            }
        }
        location.path_style = path_style.unwrap_or(location.endpoint.is_some());
        Ok(location)
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)?;
        self.endpoint.as_ref().map_or(Ok(()), |endpoint| write!(f, " at {endpoint}"))
    }
}

fn check_bucket(bucket: &str) -> Result<(), LocationError> {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = bucket.as_bytes();
    let is_bucket = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| is_good(*byte))
        && ends_well(bytes.first())
        && ends_well(bytes.last());
    if is_bucket { Ok(()) } else { Err(LocationError::Bucket(bucket.to_owned())) }
}

fn checked_prefix(text: &str) -> Result<String, LocationError> {
    let trimmed = text.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    let fits = trimmed.len() < KEY_LEN_MAX - NAME_LEN_MAX;
    match ardent_object_store::ObjectName::new(trimmed) {
        Ok(name) if fits => Ok(format!("{name}/")),
        _ => Err(LocationError::Prefix(text.to_owned())),
    }
}

fn checked_endpoint(value: String) -> Result<String, LocationError> {
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    if host.is_some_and(|host| !host.is_empty() && !host.contains('@')) {
        return Ok(value.trim_end_matches('/').to_owned());
    }
    let expected = "http://HOST:PORT or https://HOST:PORT, without credentials";
    Err(LocationError::Value { parameter: "endpoint", value, expected })
}

fn not_empty(parameter: &'static str, value: String) -> Result<String, LocationError> {
    if value.is_empty() { Err(LocationError::Value { parameter, value, expected: "a name" }) } else { Ok(value) }
}

fn parse_bool(parameter: &'static str, value: String) -> Result<bool, LocationError> {
    value.parse().map_err(|_| LocationError::Value { parameter, value, expected: "true or false" })
}

/// Text with `%XX` replaced. What is not two hexadecimal digits stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code =
            digits.filter(|digits| !digits.starts_with('+')).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.filter(|_| bytes[at] == b'%') {
            Some(code) => {
                out.push(code);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_locations() {
        let plain = S3Location::parse("s3://my-bucket").unwrap();
        assert_eq!((plain.bucket.as_str(), plain.prefix.as_str(), plain.path_style), ("my-bucket", "", false));
        let full =
            S3Location::parse("s3://b.1/a/b/?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-1&profile=p").unwrap();
        let expect = S3Location {
            bucket: "b.1".into(),
            prefix: "a/b/".into(),
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: Some("eu-1".into()),
            path_style: true,
            profile: Some("p".into()),
        };
        assert_eq!(full, expect);
        assert!(!S3Location::parse("s3://bkt?endpoint=https://h&path-style=false").unwrap().path_style);
        assert_eq!(full.to_string(), "s3://b.1/a/b/ at http://127.0.0.1:9000");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad = [
            ("file:/x", "does not begin with s3://"),
            ("s3://ab/x", "\"ab\" is no name of a bucket"),
            ("s3://Bucket", "is no name of a bucket"),
            ("s3://bucket/a b", "can't be a prefix"),
            ("s3://bucket/../x", "can't be a prefix"),
            ("s3://bucket?endpont=x", "\"endpont\" is no parameter"),
            ("s3://bucket?endpoint=localhost:9000", "is no value of endpoint"),
            ("s3://bucket?endpoint=http://key:secret@host", "without credentials"),
            ("s3://bucket?path-style=yes", "true or false"),
            ("s3://bucket?region=", "is no value of region"),
        ];
        for (url, expect) in bad {
            let error = S3Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(expect), "{url}: {error}");
        }
    }

    #[test]
    fn percent_decoding_leaves_alone_what_is_no_code() {
        for (text, expect) in [("a%2Fb", "a/b"), ("100%", "100%"), ("%zz%+1%", "%zz%+1%"), ("ä%C3%A4", "ää")] {
            assert_eq!(percent_decoded(text), expect);
        }
    }
}
