//! AdmissionReview, `admission.k8s.io/v1`, as raw JSON.
//!
//! Invariant: the answer to a request always allows the pod, and has the request's own uid.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::cluster::is_object_name;

/// The request of one review.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdmissionRequest {
    pub uid: String,
    pub namespace: String,
    pub is_dry_run: bool,
    /// None when it is not about the creation of a pod.
    pub pod: Option<Value>,
}

/// A body that is no request. The answer is an HTTP status then, not a review.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no AdmissionReview of admission.k8s.io/v1 with a request")]
pub(crate) struct NotAReviewError;

impl AdmissionRequest {
    pub(crate) fn read(body: &[u8]) -> Result<Self, NotAReviewError> {
        let review: Value = serde_json::from_slice(body).map_err(|_| NotAReviewError)?;
        let is_review = review["kind"] == "AdmissionReview" && review["apiVersion"] == "admission.k8s.io/v1";
        let request = &review["request"];
        let uid = request["uid"]
            .as_str()
            .filter(|_| is_review)
            .ok_or(NotAReviewError)?
            .to_owned();
        let namespace = request["namespace"].as_str().unwrap_or_default().to_owned();
        let is_creation = request["operation"] == "CREATE"
            && request["resource"]["group"] == ""
            && request["resource"]["resource"] == "pods"
            && request["subResource"].as_str().unwrap_or_default().is_empty()
            && request["object"].is_object()
            && is_object_name(&namespace);
        Ok(Self {
            uid,
            is_dry_run: request["dryRun"] == true,
            pod: is_creation.then(|| request["object"].clone()),
            namespace,
        })
    }

    /// The answer is always yes. `warning`: shown to the client that creates the pod.
    pub(crate) fn answer(&self, patch: &[Value], warning: Option<&str>) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": true});
        if !patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64_STANDARD.encode(Value::from(patch.to_vec()).to_string()));
        }
        if let Some(warning) = warning {
            // Longer ones are cut by the API server.
            let warning: String = warning.chars().take(WARNING_CHARS_MAX).collect();
            response["warnings"] = json!([warning]);
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

const WARNING_CHARS_MAX: usize = 240;

#[cfg(test)]
mod tests {
    use super::*;

    fn review() -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "operation": "CREATE", "namespace": "team", "dryRun": true,
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "object": {"metadata": {"generateName": "x-"}},
            },
        })
    }

    fn read(review: &Value) -> Result<AdmissionRequest, NotAReviewError> {
        AdmissionRequest::read(review.to_string().as_bytes())
    }

    #[test]
    fn the_creation_of_a_pod_is_an_admission_request() {
        let request = read(&review()).unwrap();
        assert_eq!(
            (request.uid.as_str(), request.namespace.as_str(), request.is_dry_run),
            ("u", "team", true)
        );
        assert_eq!(request.pod.unwrap()["metadata"]["generateName"], "x-");
    }

    #[test]
    fn anything_else_is_answered_and_not_looked_at() {
        for (pointer, value) in [
            ("/request/operation", json!("UPDATE")),
            ("/request/operation", json!("DELETE")),
            ("/request/resource/resource", json!("deployments")),
            ("/request/resource/group", json!("apps")),
            ("/request/object", Value::Null),
            ("/request/namespace", json!("../x")),
        ] {
            let mut review = review();
            *review.pointer_mut(pointer).unwrap() = value;
            let request = read(&review).unwrap();
            assert_eq!(request.pod, None, "{pointer}");
            assert_eq!(
                request.answer(&[], None)["response"],
                json!({"uid": "u", "allowed": true})
            );
        }
        let mut review = review();
        review["request"]["subResource"] = json!("ephemeralcontainers");
        assert_eq!(read(&review).unwrap().pod, None);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        for body in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u"}}"#,
        ] {
            assert_eq!(AdmissionRequest::read(body.as_bytes()), Err(NotAReviewError), "{body}");
        }
        let mut review = review();
        review["request"]["uid"] = Value::Null;
        assert_eq!(read(&review), Err(NotAReviewError));
    }

    #[test]
    fn a_patch_goes_as_base64_and_never_refuses() {
        let answer = read(&review())
            .unwrap()
            .answer(&[json!({"op": "add"})], Some(&"w".repeat(1000)));
        let response = &answer["response"];
        assert_eq!(response["allowed"], true);
        assert_eq!(
            BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap(),
            br#"[{"op":"add"}]"#
        );
        assert_eq!(response["warnings"][0].as_str().unwrap().len(), WARNING_CHARS_MAX);
    }
}
