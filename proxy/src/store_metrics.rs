//! Metrics of a store, read at each scrape.
//!
//! Invariant: a scrape reads neither the index nor a file.

use std::fmt;

use piecemeal_store::Store;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

/// Adds a store's figures.
pub(crate) fn register_store(store: &Store, registry: &mut Registry) {
    registry.register_collector(Box::new(StoreCollector(store.clone())));
}

struct StoreCollector(Store);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector(..)")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.0.counts();
        let gauges = [
            ("piecemeal_store_blobs", "Complete blobs", counts.blobs),
            (
                "piecemeal_store_blob_bytes",
                "Bytes of complete blobs",
                counts.blob_bytes,
            ),
            ("piecemeal_store_partials", "Incomplete blobs", counts.partials),
            (
                "piecemeal_store_reserved_bytes",
                "Total sizes of the blobs that are not complete",
                counts.reserved_bytes,
            ),
            (
                "piecemeal_store_quota_bytes",
                "Maximum bytes of blobs; 0: limited by the disk only",
                counts.quota_bytes.unwrap_or(0),
            ),
            (
                "piecemeal_store_free_bytes",
                "Bytes free on the disk that holds the store",
                counts.free_bytes,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            (
                "piecemeal_store_expired_blobs",
                "Blobs that were deleted because they were not used within the cache TTL",
                counts.expired_blobs,
            ),
            (
                "piecemeal_store_evicted_blobs",
                "Blobs that were evicted to make room",
                counts.evicted_blobs,
            ),
            (
                "piecemeal_store_freed_bytes",
                "Bytes of deleted blobs, for any reason",
                counts.freed_bytes,
            ),
            (
                "piecemeal_damaged_blobs",
                "Blobs that were found damaged on disk and deleted",
                counts.damaged_blobs,
            ),
            (
                "piecemeal_store_verified_bytes",
                "Bytes of blobs that were verified and found intact",
                counts.verified_bytes,
            ),
            (
                "piecemeal_store_indexes_lost",
                "Indexes that were spoilt or missing at the start, and were begun again",
                counts.indexes_lost,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
