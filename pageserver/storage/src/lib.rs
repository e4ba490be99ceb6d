//! The page server's storage engine: layers, timelines, manifest, compaction, garbage collection.
