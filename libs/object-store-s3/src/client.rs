//! The SDK's client, with our TLS, and without retries of its own: when to try again is decided in one place, `retry.rs`.

use std::path::PathBuf;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::{Builder, tls};
use rustls::RootCertStore;

use crate::location::S3Location;
use crate::store::S3Options;

/// Longest that connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What servers of one's own are signed for when nothing names a region; they take any.
const REGION_OF_AN_ENDPOINT: &str = "us-east-1";

/// A store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum S3OpenError {
    /// The CA's file.
    #[error("the CA file {path} of the store can't be read; give --store-ca a file with certificates in PEM")]
    Ca {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA's file has other content.
    #[error("the CA file {path} of the store holds no certificate in PEM")]
    NoCa {
        /// File.
        path: PathBuf,
    },
    /// No certificate can be checked.
    #[error(
        "this host trusts no certificate authority, so the store's certificate can't be checked: give --store-ca FILE, or install the host's list (Debian: apt-get install ca-certificates)"
    )]
    NoRoots,
    /// TLS could not be set up.
    #[error("TLS for the store can't be set up: {0}")]
    Tls(String),
    /// Neither region nor endpoint.
    #[error(
        "nothing says in which region bucket {bucket} is: give region= in --store, set AWS_REGION, or give endpoint= for a server of your own"
    )]
    NoRegion {
        /// Bucket.
        bucket: String,
    },
    /// Threads.
    #[error("threads for the store can't be started")]
    Runtime(#[source] std::io::Error),
}

/// The client for `location`.
pub(crate) async fn connect(location: &S3Location, options: &S3Options) -> Result<Client, S3OpenError> {
    let http = Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .tls_context(tls_context(location, options)?)
        .pool_idle_timeout(Duration::from_secs(60))
        .build_https();
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled())
        // The timeout of each attempt covers its body.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Newer sums in trailers are not known to every server; ours are set call by call.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &location.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    match (&location.region, &location.endpoint) {
        (Some(region), _) => loader = loader.region(Region::new(region.clone())),
        // A server of one's own takes any region: the instance's metadata need not be asked for one.
        (None, Some(_)) => {
            let environment = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new());
            loader = loader.region(environment.or_else(REGION_OF_AN_ENDPOINT));
        }
        (None, None) => {}
    }
    if let Some(profile) = &location.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(keys) = &options.keys {
        loader = loader.credentials_provider(Credentials::new(&keys.access, &keys.secret, None, None, "given"));
    }
    let shared = loader.load().await;
    if shared.region().is_none() {
        return Err(S3OpenError::NoRegion { bucket: location.bucket.clone() });
    }
    let config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(location.path_style);
    Ok(Client::from_conf(config.build()))
}

fn tls_context(location: &S3Location, options: &S3Options) -> Result<tls::TlsContext, S3OpenError> {
    let mut trusted = tls::TrustStore::empty();
    if let Some(path) = &options.ca_file {
        let pem = std::fs::read(path).map_err(|source| S3OpenError::Ca { path: path.clone(), source })?;
        // The client would panic on it at its first connection.
        if !are_certificates(&pem) {
            return Err(S3OpenError::NoCa { path: path.clone() });
        }
        trusted = trusted.with_pem_certificate(pem);
    } else if !rustls_native_certs::load_native_certs().certs.is_empty() {
        trusted = trusted.with_native_roots(true);
    } else if location.endpoint.as_ref().is_none_or(|endpoint| endpoint.starts_with("https:")) {
        return Err(S3OpenError::NoRoots);
    }
    let context = tls::TlsContext::builder().with_trust_store(trusted).build();
    context.map_err(|error| S3OpenError::Tls(error.to_string()))
}

fn are_certificates(mut pem: &[u8]) -> bool {
    let mut roots = RootCertStore::empty();
    let all_good = rustls_pemfile::certs(&mut pem).all(|certificate| certificate.is_ok_and(|it| roots.add(it).is_ok()));
    all_good && !roots.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_a_ca() {
        assert!(!are_certificates(b""));
        assert!(!are_certificates(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        assert!(are_certificates(made.cert.pem().as_bytes()));
    }
}
