//! Leader election over a Kubernetes Lease, as other controllers do it: only the leader renews the CA and reconciles the copies.
//!
//! A replica judges by its own clock how long the Lease has not changed, and never compares clocks with another.

use std::time::Duration;

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    cluster::{Cluster, ClusterError, Objects},
    metrics::Metrics,
};

/// The time for which a Lease holds without being renewed.
const LEASE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// Reading and writing together, so that a leader learns in time that it cannot renew.
const ROUND_TIME_MAX: Duration = Duration::from_secs(3);
/// When a leader that cannot renew stops, well before another replica may begin.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// This replica as a candidate for one Lease.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub namespace: String,
    pub lease: String,
    /// Unlike every other replica's.
    pub identity: String,
}

/// The last change of the Lease that this replica has observed, by its own clock.
#[derive(Debug, PartialEq)]
struct ObservedLease {
    version: Value,
    at: Instant,
}

/// The write that the state of the Lease calls for.
#[derive(Debug, PartialEq)]
enum LeaseAction {
    Create(Value),
    Take(Value),
    Renew(Value),
    Wait,
}

/// Tells through `leads` whether this replica is the leader, until told to stop; then lets go.
pub(crate) async fn run(
    cluster: Cluster,
    candidate: Candidate,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let leases = cluster.objects::<Lease>(&candidate.namespace);
    let mut observed = None;
    let mut renewed = Instant::now();
    let running = async {
        loop {
            let round = timeout(ROUND_TIME_MAX, round(&leases, &candidate, &mut observed));
            let late = || ClusterError::Unreachable(format!("it takes more than {} s", ROUND_TIME_MAX.as_secs()));
            match round.await.unwrap_or_else(|_| Err(late())) {
                Ok(is_leader) => {
                    renewed = Instant::now();
                    announce(&leads, &metrics, is_leader);
                }
                Err(error) if renewed.elapsed() >= GIVE_UP_AFTER => {
                    warn!("the Lease {} cannot be kept: {error}", candidate.lease);
                    announce(&leads, &metrics, false);
                }
                Err(_) => {}
            }
            sleep(RENEW_EVERY).await;
        }
    };
    stop.run_until_cancelled(running).await;
    if leads.send_replace(false) {
        let released = release(&leases, &candidate).await;
        if let Err(error) = released {
            warn!("the Lease {} stays until it expires: {error}", candidate.lease);
        }
    }
}

fn announce(leads: &watch::Sender<bool>, metrics: &Metrics, is_leader: bool) {
    metrics.leader.set(is_leader.into());
    if leads.send_replace(is_leader) != is_leader {
        info!(
            leader = is_leader,
            "this replica {} copies and certificates",
            if is_leader {
                "reconciles"
            } else {
                "no longer reconciles"
            }
        );
    }
}

/// Whether this replica is the leader now.
async fn round(
    leases: &Objects,
    candidate: &Candidate,
    observed: &mut Option<ObservedLease>,
) -> Result<bool, ClusterError> {
    let lease = leases.get(&candidate.lease).await?;
    let now = Instant::now();
    let version = lease
        .as_ref()
        .map_or(Value::Null, |lease| lease["metadata"]["resourceVersion"].clone());
    if observed.as_ref().is_none_or(|observed| observed.version != version) {
        *observed = Some(ObservedLease { version, at: now });
    }
    let unchanged = observed
        .as_ref()
        .map_or(Duration::ZERO, |observed| now.duration_since(observed.at));
    let written = match decide(lease.as_ref(), candidate, unchanged, Timestamp::now()) {
        LeaseAction::Wait => return Ok(false),
        LeaseAction::Create(lease) => leases.create(&lease, false).await.map(|_| ()),
        LeaseAction::Take(lease) | LeaseAction::Renew(lease) => leases.replace(&candidate.lease, &lease).await,
    };
    match written {
        Ok(()) => Ok(true),
        // Another replica was faster.
        Err(ClusterError::Conflict(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn decide(lease: Option<&Value>, candidate: &Candidate, unchanged: Duration, now: Timestamp) -> LeaseAction {
    let now = json!(format!("{now:.6}"));
    let identity = json!(candidate.identity);
    let Some(lease) = lease else {
        return LeaseAction::Create(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": candidate.lease, "namespace": candidate.namespace},
            "spec": {
                "holderIdentity": identity, "leaseDurationSeconds": LEASE.as_secs(), "acquireTime": now, "renewTime": now,
                "leaseTransitions": 0,
            },
        }));
    };
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    if holder == candidate.identity {
        return LeaseAction::Renew(with_spec(lease, [("renewTime", now)]));
    }
    if !holder.is_empty() && unchanged < LEASE {
        return LeaseAction::Wait;
    }
    let transitions = lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
    let fields = [
        ("holderIdentity", identity),
        ("leaseDurationSeconds", json!(LEASE.as_secs())),
        ("acquireTime", now.clone()),
        ("renewTime", now),
        ("leaseTransitions", json!(transitions + 1)),
    ];
    LeaseAction::Take(with_spec(lease, fields))
}

/// `lease` with other values of some fields of its spec, which a Lease from a chart does not have yet.
fn with_spec<const N: usize>(lease: &Value, fields: [(&str, Value); N]) -> Value {
    let mut lease = lease.clone();
    let mut spec = lease["spec"].as_object().cloned().unwrap_or_default();
    spec.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    if let Some(lease) = lease.as_object_mut() {
        lease.insert("spec".to_owned(), Value::Object(spec));
    }
    lease
}

/// Lets go of the Lease, so that another replica need not wait for it to run out.
async fn release(leases: &Objects, candidate: &Candidate) -> Result<(), ClusterError> {
    let Some(lease) = leases.get(&candidate.lease).await? else {
        return Ok(());
    };
    if lease["spec"]["holderIdentity"] != *candidate.identity {
        return Ok(());
    }
    let free = with_spec(&lease, [("holderIdentity", json!(""))]);
    leases.replace(&candidate.lease, &free).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(identity: &str) -> Candidate {
        Candidate {
            namespace: "n".to_owned(),
            lease: "l".to_owned(),
            identity: identity.to_owned(),
        }
    }

    fn act(lease: Option<&Value>, identity: &str, unchanged: Duration) -> LeaseAction {
        decide(lease, &candidate(identity), unchanged, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_is_kept_by_its_holder_and_taken_when_it_has_run_out_or_was_let_go() {
        let LeaseAction::Create(lease) = act(None, "a", Duration::ZERO) else {
            panic!("there was none");
        };
        assert!(matches!(
            act(Some(&lease), "a", Duration::from_secs(60)),
            LeaseAction::Renew(_)
        ));
        assert_eq!(
            act(Some(&lease), "b", LEASE - Duration::from_secs(1)),
            LeaseAction::Wait
        );
        let LeaseAction::Take(taken) = act(Some(&lease), "b", LEASE) else {
            panic!("it has run out");
        };
        assert_eq!(taken["spec"]["holderIdentity"], "b");
        assert_eq!(taken["spec"]["leaseTransitions"], 1);
        assert_eq!(taken["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
        let bare = json!({"metadata": {"name": "l"}});
        let LeaseAction::Take(taken) = act(Some(&bare), "b", Duration::ZERO) else {
            panic!("a lease without a holder is taken");
        };
        assert_eq!(taken["spec"]["holderIdentity"], "b");
        let mut free = lease;
        free["spec"]["holderIdentity"] = json!("");
        assert!(matches!(act(Some(&free), "b", Duration::ZERO), LeaseAction::Take(_)));
    }
}
