//! Whatever the Kubernetes API does, a pod is allowed, and never with a pull secret that is not there.
//!
//! The webhook is asked over its own port, as an API server asks. [`Stand::ask`] checks both promises each time.

mod support;

use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use axum::http::Method;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Secret};
use piecemeal_webhook::ClusterError;
use serde_json::json;
use support::{
    COPY, COPY_NAME, SECRETS, Stand, TEAM,
    fake_api::{FakeApi, Fault},
    log::Log,
    patched, pod, pull_secret, secrets_of, until,
};
use tracing::subscriber::set_default;

/// What the webhook takes at most, with room for a busy machine. The API server waits for 5 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);
const ALWAYS: usize = usize::MAX;

#[tokio::test]
async fn a_pod_stays_as_it_is_whatever_the_api_refuses_with() {
    let stand = Stand::start().await;
    for method in [Method::GET, Method::POST] {
        for code in [400, 401, 403, 409, 422, 429, 500, 503, 504] {
            stand.api.order(method.clone(), TEAM, Fault::Status(code), ALWAYS);
            let began = Instant::now();
            let verdict = stand.ask(&pod()).await;
            assert!(verdict.is_warned_and_unchanged(), "{method} {code}: {verdict:?}");
            assert!(began.elapsed() < ANSWER_TIME_MAX, "{method} {code}");
            stand.api.heal();
        }
    }
    assert_eq!(stand.api.get(COPY), None);
    let verdict = stand.ask(&pod()).await;
    assert_eq!(
        secrets_of(&patched(&pod(), &verdict)),
        ["regcred", "acr-credential-regcred-p2p"],
        "all is well again: {verdict:?}"
    );
}

#[tokio::test]
async fn a_copy_that_cannot_be_renewed_is_not_relied_on() {
    let stand = Stand::start().await;
    stand.ask(&pod()).await;
    stand.api.put(SECRETS, pull_secret("another"));
    for code in [403, 404, 409, 429, 500] {
        stand.api.order(Method::PUT, TEAM, Fault::Status(code), ALWAYS);
        let verdict = stand.ask(&pod()).await;
        assert!(verdict.is_warned_and_unchanged(), "{code}: {verdict:?}");
        stand.api.heal();
    }
}

#[tokio::test]
async fn a_namespace_that_is_gone_gets_no_copy_and_no_patch() {
    let stand = Stand::start().await;
    stand.api.order(Method::POST, TEAM, Fault::Status(404), ALWAYS);
    let verdict = stand.ask(&pod()).await;
    assert!(verdict.is_warned_and_unchanged(), "{verdict:?}");
}

#[tokio::test]
async fn an_api_that_hangs_costs_two_seconds_and_no_more() {
    for method in [Method::GET, Method::POST] {
        let stand = Stand::start().await;
        stand.api.order(method, TEAM, Fault::Hang, ALWAYS);
        let began = Instant::now();
        let verdict = stand.ask(&pod()).await;
        let took = began.elapsed();
        assert!(verdict.is_warned_and_unchanged(), "{verdict:?}");
        assert!(took >= Duration::from_secs(2) && took < ANSWER_TIME_MAX, "{took:?}");
    }
}

#[tokio::test]
async fn an_api_that_is_slow_is_waited_for() {
    let stand = Stand::start().await;
    let late = Fault::Delay(Duration::from_millis(50));
    stand.api.order(Method::GET, TEAM, late, ALWAYS);
    stand.api.order(Method::POST, TEAM, late, ALWAYS);
    assert!(!stand.ask(&pod()).await.patch.is_empty());
}

#[tokio::test]
async fn an_answer_that_is_no_json_changes_nothing() {
    let stand = Stand::start().await;
    for method in [Method::GET, Method::POST] {
        stand.api.order(method.clone(), TEAM, Fault::Garbage, ALWAYS);
        let verdict = stand.ask(&pod()).await;
        assert!(verdict.is_warned_and_unchanged(), "{method}: {verdict:?}");
        stand.api.heal();
    }
}

#[tokio::test]
async fn an_answer_that_is_no_json_reaches_no_log_and_no_error() {
    let stand = Stand::start().await;
    stand.api.order(Method::GET, TEAM, Fault::Garbage, ALWAYS);
    let log = Log::default();
    let _logging = set_default(log.clone());
    let secrets = stand.cluster.objects::<Secret>("team");
    let errors = [
        secrets.get("regcred").await.expect_err("no Secret").to_string(),
        secrets.list("").await.expect_err("no list").to_string(),
    ];
    let verdict = stand.ask(&pod()).await;
    assert!(verdict.is_warned_and_unchanged(), "{verdict:?}");
    let told = log.text();
    assert!(
        told.contains("the answer is not JSON"),
        "the webhook's own line: {told}"
    );
    for text in errors.iter().chain(&verdict.warnings).chain([&told]) {
        assert!(!text.contains("Bad gateway"), "{text}");
    }
}

#[tokio::test]
async fn a_list_of_several_pages_is_read_to_its_end_and_by_labels() {
    let stand = Stand::start().await;
    for number in 0..1200 {
        let labels = json!({"app": if number % 2 == 0 { "even" } else { "odd" }});
        let metadata = json!({"name": format!("p-{number:04}"), "labels": labels});
        let pod = json!({"metadata": metadata, "spec": {"nodeName": "n"}, "data": {"a": "b"}});
        stand.api.put(&format!("{TEAM}/pods"), pod);
    }
    let pods = stand.cluster.objects::<Pod>("team");
    assert_eq!(pods.list("").await.expect("the pods").len(), 1200);
    let even = pods.list("app=even").await.expect("the pods");
    assert_eq!(even.len(), 600);
    assert_eq!(
        (&even[1]["metadata"]["name"], &even[1]["spec"]["nodeName"]),
        (&json!("p-0002"), &json!("n"))
    );
    let mut names = 0;
    let count = |pod: serde_json::Value| {
        assert_eq!((&pod["spec"], &pod["data"]), (&json!(null), &json!(null)));
        names += usize::from(pod["metadata"]["name"].is_string());
    };
    pods.each_metadata("app=odd", count).await.expect("the pods");
    assert_eq!(names, 600);
    let mut asked = stand.api.asked("pods");
    asked.retain(|asked| asked.query.contains("odd"));
    assert_eq!(asked.len(), 2, "two pages");
    assert!(asked.iter().all(|asked| asked.metadata_only), "no whole object came");
}

#[tokio::test]
async fn without_an_api_there_are_answers_all_the_same() {
    let api = FakeApi::new();
    let served = api.serve();
    let stand = Stand::start_over_http(api, &format!("http://{}", served.address)).await;
    assert!(!stand.ask(&pod()).await.patch.is_empty());
    let address = served.address;
    drop(served);
    until("the address is free", async || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, address.port())).is_ok()
    })
    .await;
    let began = Instant::now();
    let verdict = stand.ask(&pod()).await;
    assert!(verdict.is_warned_and_unchanged(), "{verdict:?}");
    assert!(began.elapsed() < ANSWER_TIME_MAX);
}

#[tokio::test]
async fn a_pod_that_needs_no_secret_s_copy_causes_no_api_request() {
    let stand = Stand::start().await;
    stand.api.order(Method::GET, TEAM, Fault::Status(500), ALWAYS);
    let mut pod = pod();
    pod["spec"]["containers"][0]["image"] = json!("quay.io/team/app:1");
    let verdict = stand.ask(&pod).await;
    assert_eq!((verdict.patch.len(), verdict.warnings.len()), (0, 0), "{verdict:?}");
    assert_eq!(stand.api.asked(TEAM), []);
}

#[tokio::test]
async fn a_source_that_goes_after_it_was_read_leads_to_no_missing_copy() {
    let stand = Stand::start().await;
    stand.api.order(Method::GET, "/secrets/regcred", Fault::Vanish, 1);
    stand.ask(&pod()).await;
    let verdict = stand.ask(&pod()).await;
    assert!(verdict.patch.is_empty(), "its source is gone: {verdict:?}");
}

#[tokio::test]
async fn a_copy_that_is_deleted_between_reading_and_writing_is_created_again() {
    let stand = Stand::start().await;
    stand.ask(&pod()).await;
    // It has to be written again, and is not there any more when it is.
    stand.api.put(SECRETS, pull_secret("another"));
    stand.api.order(Method::GET, COPY, Fault::Vanish, 1);
    let verdict = stand.ask(&pod()).await;
    assert!(!verdict.patch.is_empty(), "{verdict:?}");
    assert!(stand.api.get(COPY).is_some());
}

#[tokio::test]
async fn a_conflict_now_and_then_is_overcome() {
    let stand = Stand::start().await;
    stand.api.order(Method::POST, SECRETS, Fault::Status(409), 2);
    let verdict = stand.ask(&pod()).await;
    assert!(!verdict.patch.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn the_same_question_again_writes_nothing() {
    let stand = Stand::start().await;
    stand.store(&pod()).await;
    let first = stand.ask(&pod()).await;
    let written = stand.api.writes(TEAM);
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(stand.ask(&pod()).await, first);
    let again = stand.ask(&patched(&pod(), &first)).await;
    assert!(again.patch.is_empty(), "its own work is left alone: {again:?}");
    assert_eq!(stand.api.writes(TEAM), written);
}

#[tokio::test]
async fn a_dry_run_tells_the_same_and_writes_nothing() {
    let stand = Stand::start().await;
    let dry = stand.ask_dry(&pod()).await;
    assert_eq!(stand.api.writes(TEAM), []);
    assert_eq!(stand.ask(&pod()).await, dry);
}

#[tokio::test]
async fn many_pods_that_need_one_new_copy_get_one() {
    let stand = Stand::start().await;
    stand.store(&pod()).await;
    // All have seen that there is none before the first has written it.
    let late = Fault::Delay(Duration::from_millis(100));
    stand.api.order(Method::POST, SECRETS, late, ALWAYS);
    let pod = pod();
    let verdicts = join_all((0..16).map(|_| stand.ask(&pod))).await;
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    assert!(!verdicts[0].patch.is_empty());
    let writes = stand.api.writes(SECRETS);
    let created = writes
        .iter()
        .filter(|asked| asked.status.is_some_and(|status| status == 201));
    assert_eq!(created.count(), 1, "{writes:?}");
    assert!(writes.iter().all(|asked| asked.method == Method::POST), "{writes:?}");
    assert_eq!(stand.api.list(SECRETS).len(), 2);
}

#[tokio::test]
async fn a_copy_that_was_to_be_deleted_is_taken_into_use_again_first() {
    let stand = Stand::start().await;
    stand.ask(&pod()).await;
    let unused = "piecemeal.dev/copy-unused-since";
    let marked = || {
        let copy = stand.api.get(COPY).expect("the copy");
        copy["metadata"]["annotations"].get(unused).is_some().then_some(copy)
    };
    // No pod names it: the one that was asked about has not been created.
    until("it is marked", async || marked().is_some()).await;
    let marked_copy = marked().expect("the mark stays");
    let before = stand.api.writes(COPY).len();
    stand.ask(&pod()).await;
    let writes = stand.api.writes(COPY).split_off(before);
    assert_eq!(writes[0].method, Method::PUT, "{writes:?}");
    let version = &stand.api.get(COPY).expect("the copy")["metadata"]["resourceVersion"];
    assert_ne!(*version, marked_copy["metadata"]["resourceVersion"]);
    let secrets = stand.cluster.objects::<Secret>("team");
    let deletion = secrets.delete(COPY_NAME, Some(&marked_copy["metadata"])).await;
    assert!(
        matches!(deletion, Err(ClusterError::Conflict(_))),
        "a reconciler that saw it marked cannot delete it any more: {deletion:?}"
    );
}

#[tokio::test]
async fn a_copy_that_is_right_is_not_read_again_when_it_is_reconciled() {
    let stand = Stand::start().await;
    stand.store(&pod()).await;
    stand.ask(&pod()).await;
    let read = stand.api.asked(COPY).len();
    let looks = || stand.api.asked(&format!("{TEAM}/pods")).len();
    until("its namespace is looked at", async || looks() == 1).await;
    // Looks come one after the other: with the second the first has ended.
    stand.api.put(SECRETS, pull_secret("p"));
    until("it is looked at again", async || looks() == 2).await;
    assert_eq!(stand.api.asked(COPY).len(), read);
}
