//! Errors of the Kubernetes API, by what the caller can do about them. None of them has an object's content: it may be a Secret.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

/// The longest time for one answer. kube waits without end; the server's own limit is a minute.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Why the API has not done what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// Another client was first: the object exists already, or has changed since it was read.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}; the service account lacks a right that the chart's RBAC gives")]
    Forbidden(String),
    #[error("{0}")]
    Refused(String),
    #[error("the Kubernetes API does not answer: {0}")]
    Unreachable(String),
}

/// The answer to one request, which `asked` names, within [`ANSWER_TIME_MAX`]. None for 404.
pub(super) async fn answer<T>(
    asked: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, ClusterError> {
    // kube would log an answer that it cannot read, Secret or not.
    let request = request.with_subscriber(NoSubscriber::new());
    match timeout(ANSWER_TIME_MAX, request).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(ClusterError::of(asked, error)),
        Err(_) => Err(ClusterError::Unreachable(format!(
            "{asked} takes more than {} s",
            ANSWER_TIME_MAX.as_secs()
        ))),
    }
}

impl ClusterError {
    fn of(asked: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = format!("{asked}: {}", status.message);
                match status.code {
                    409 => Self::Conflict(message),
                    403 => Self::Forbidden(message),
                    429 | 500.. => Self::Unreachable(message),
                    _ => Self::Refused(message),
                }
            }
            // Its text may quote the answer.
            kube::Error::SerdeError(_) => Self::Unreachable(format!("{asked}: the answer is not JSON")),
            kube::Error::BuildRequest(error) => Self::Refused(format!("{asked}: {error}")),
            error => Self::Unreachable(format!("{asked}: {error}")),
        }
    }
}
