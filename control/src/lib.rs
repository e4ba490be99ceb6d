//! Who owns which branch and endpoint; lifecycle; the HTTP API; the store.
