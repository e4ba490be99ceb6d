//! What a store must do, without faults.

use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, conformance, list_all};
use ardent_object_store_s3::{S3Keys, S3Location, S3OpenError, S3Options, S3Store};

use crate::house::House;

#[test]
fn conforms() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    conformance::check(&house.store(""), scratch.path());
}

#[test]
fn conforms_below_a_prefix_and_sees_nothing_beside_it() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let (ours, other) = (house.store("deep/er"), house.store("deep"));
    let beside = ObjectName::new("beside").unwrap();
    other.put(&beside, b"x").unwrap();
    conformance::check(&ours, scratch.path());
    let name = ObjectName::new("a/b").unwrap();
    ours.put(&name, b"x").unwrap();
    assert_eq!(&other.get(&ObjectName::new("er/a/b").unwrap()).unwrap()[..], b"x");
    assert_eq!(list_all(&ours, "", false).unwrap().objects.len(), 1);
}

#[test]
fn tls_is_by_the_ca_that_was_given() {
    let house = House::new();
    let location = house.location(&house.server.https_endpoint(), "");
    let trusting = S3Options { ca_file: Some(house.server.ca_file()), ..house.options() };
    let name = ObjectName::new("a").unwrap();
    let store = S3Store::open(&location, &trusting).unwrap();
    store.put_if_absent(&name, b"over TLS").unwrap();
    assert_eq!(&store.get_range(&name, 5..8).unwrap()[..], b"TLS");

    let scratch = tempfile::tempdir().unwrap();
    let other = scratch.path().join("other.pem");
    std::fs::write(&other, rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.pem()).unwrap();
    let strange = S3Options { ca_file: Some(other), ..house.options() };
    let error = S3Store::open(&location, &strange).unwrap().get(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("--store-ca"), "{error}");

    let missing = S3Options { ca_file: Some(scratch.path().join("none")), ..house.options() };
    assert!(matches!(S3Store::open(&location, &missing), Err(S3OpenError::Ca { .. })));
}

#[test]
fn refusals_name_the_next_step() {
    let house = House::new();
    let name = ObjectName::new("a").unwrap();
    let keys = S3Keys { access: "stranger".to_owned(), secret: "unknown".to_owned() };
    let stranger = S3Options { keys: Some(keys), ..house.options() };
    let error = S3Store::open(&house.location(&house.server.endpoint(), ""), &stranger).unwrap();
    let error = error.put(&name, b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("check access key"), "{error}");

    let nowhere = S3Location { bucket: "no-such-bucket".to_owned(), ..house.location(&house.server.endpoint(), "") };
    let nowhere = S3Store::open(&nowhere, &house.options()).unwrap();
    for error in [nowhere.put(&name, b"x").unwrap_err(), list_all(&nowhere, "", false).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("make the bucket"), "{error}");
    }
}

#[test]
fn a_region_or_an_endpoint_must_be_known() {
    let location = S3Location::parse("s3://some-bucket?profile=no-such-profile-anywhere").unwrap();
    let error = S3Store::open(&location, &S3Options::default());
    // A host may have a region set; then there is nothing to refuse.
    if std::env::var_os("AWS_REGION").is_none() && std::env::var_os("AWS_DEFAULT_REGION").is_none() {
        let text = error.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("AWS_REGION") || text.contains("certificate authority"), "{text}");
    }
}
