//! Client of one Kubernetes cluster. Every request has a limit on its time, and no answer reaches a log.

use std::fmt::Display;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::version::Info};
use kube::{Client, Config, Resource, api::Request, config::KubeConfigOptions, core::NamespaceResourceScope};
use serde_json::Value;

use super::{
    error::{ClusterError, answer},
    objects::Objects,
};

/// A client of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Client);

impl Cluster {
    /// The cluster that this process runs in, or that `KUBECONFIG` or the usual file names.
    ///
    /// # Errors
    /// There is neither, or it cannot be read.
    pub async fn connect() -> Result<Self, ClusterError> {
        let config = Config::infer().await.map_err(|error| {
            ClusterError::Unreachable(format!("no cluster is configured here (set KUBECONFIG): {error}"))
        })?;
        let unusable = |error| ClusterError::Unreachable(format!("the configured cluster cannot be used: {error}"));
        Client::try_from(config).map(Self).map_err(unusable)
    }

    /// The cluster of a context of the kubeconfig.
    ///
    /// # Errors
    /// There is no such context, or it cannot be read.
    pub async fn connect_to(context: &str) -> Result<Self, ClusterError> {
        let options = KubeConfigOptions {
            context: Some(context.to_owned()),
            ..KubeConfigOptions::default()
        };
        let unusable =
            |error: &dyn Display| ClusterError::Unreachable(format!("context {context} cannot be used: {error}"));
        let config = Config::from_kubeconfig(&options)
            .await
            .map_err(|error| unusable(&error))?;
        Client::try_from(config).map(Self).map_err(|error| unusable(&error))
    }

    /// A cluster behind a client that was made elsewhere.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// The namespace that is meant when none is named.
    pub fn default_namespace(&self) -> &str {
        self.0.default_namespace()
    }

    pub(crate) fn client(&self) -> Client {
        self.0.clone()
    }

    /// The objects of kind `K` of one namespace. An empty name is no namespace: the API server refuses it.
    pub fn objects<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self, namespace: &str) -> Objects {
        self.objects_in::<K>(Some(namespace))
    }

    /// The objects of kind `K` of all namespaces, or of a kind that has none.
    pub fn all_objects<K: Resource<DynamicType = ()>>(&self) -> Objects {
        self.objects_in::<K>(None)
    }

    /// [`Cluster::objects`], or [`Cluster::all_objects`] where no namespace is named.
    pub fn objects_in<K: Resource<DynamicType = ()>>(&self, namespace: Option<&str>) -> Objects {
        Objects::new::<K>(self.client(), namespace)
    }

    /// The API server's version.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn version(&self) -> Result<Info, ClusterError> {
        let asked = "GET /version";
        let version = answer(asked, self.0.apiserver_version()).await?;
        version.ok_or_else(|| ClusterError::Refused(format!("{asked}: not found")))
    }

    /// What the daemon behind `port` of a pod answers at `/status`, asked through the API server; none when it has no such page.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn daemon_status(&self, namespace: &str, pod: &str, port: u16) -> Result<Option<Value>, ClusterError> {
        // Not by kube's Api, whose subresources are all objects.
        let request = Request::new(Pod::url_path(&(), Some(namespace)))
            .get_subresource("proxy/status", &format!("{pod}:{port}"))
            .map_err(|error| ClusterError::Refused(error.to_string()))?;
        let asked = format!("GET {}", request.uri().path());
        answer(&asked, self.0.request(request)).await
    }
}
