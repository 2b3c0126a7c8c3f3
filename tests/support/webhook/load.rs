//! Pods that are created all the time, while something happens to the webhook.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use super::super::kube::KubeClient;

/// Creates pods of one kind again and again.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    creating: JoinHandle<Vec<Value>>,
}

impl Load {
    pub fn start(client: &KubeClient, pod: Value, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (client, told) = (client.clone(), Arc::clone(&stop));
        let creating = thread::spawn(move || {
            let mut created = Vec::new();
            while !told.load(Ordering::Relaxed) {
                created.push(client.create(&pod).expect("a pod is always admitted"));
                thread::sleep(pause);
            }
            created
        });
        Self { stop, creating }
    }

    /// The pods as they were stored.
    pub fn stop(self) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        self.creating.join().expect("the load goes on to its end")
    }
}
