//! Where layers and manifests live: a trait and its local-folder backend.
