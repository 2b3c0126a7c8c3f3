//! Objects of one kind in the Kubernetes API: kube's [`Api`] over raw JSON.
//!
//! An object that is read and written again keeps the fields that this version does not know, but for those in `metadata`: kube reads
//! that as its own type.

use std::fmt::Debug;

use kube::{
    Api, Client, Resource,
    api::{
        ApiResource, DeleteParams, DynamicObject, GetParams, ListParams, PartialObjectMeta, Patch, PatchParams,
        PostParams, Preconditions,
    },
    core::DynamicResourceScope,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::error::{ClusterError, answer};

/// The name under which the API server records the fields that the webhook writes.
const FIELD_MANAGER: &str = "piecemeal-webhook";
/// Objects of a list that come in one answer.
const PAGE: u32 = 500;
/// The most pages of one list; kube has no limit. A request for more has selected too broadly.
const PAGES_MAX: u32 = 1000;

/// The objects of one kind, of one namespace or of all. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    api: Api<DynamicObject>,
    metadata: Api<PartialObjectMeta<DynamicObject>>,
}

impl Objects {
    pub(super) fn new<K: Resource<DynamicType = ()>>(client: Client, namespace: Option<&str>) -> Self {
        let kind = ApiResource::erase::<K>(&());
        Self {
            api: api(client.clone(), namespace, &kind),
            metadata: api(client, namespace, &kind),
        }
    }

    /// The object `name`; none when there is none.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn get(&self, name: &str) -> Result<Option<Value>, ClusterError> {
        self.get_with(name, &GetParams::default()).await
    }

    /// Like [`Objects::get`], from the API server's cache, which may be a moment behind. An object that the cache does not have may
    /// be new, so that it is then read from etcd.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub(crate) async fn get_cached(&self, name: &str) -> Result<Option<Value>, ClusterError> {
        match self.get_with(name, &GetParams::any()).await? {
            Some(object) => Ok(Some(object)),
            None => self.get(name).await,
        }
    }

    async fn get_with(&self, name: &str, params: &GetParams) -> Result<Option<Value>, ClusterError> {
        let object = answer(&self.asked("GET", name), self.api.get_with(name, params)).await?;
        object.map(to_json).transpose()
    }

    /// Every object that has all of `labels`, a selector; all objects when it is empty.
    ///
    /// # Errors
    /// [`ClusterError`]. A list that does not exist is empty.
    pub async fn list(&self, labels: &str) -> Result<Vec<Value>, ClusterError> {
        let mut all = Vec::new();
        self.each(labels, |object| all.push(object)).await?;
        Ok(all)
    }

    /// Like [`Objects::list`], one by one: of a whole cluster's pods there is never more than a page in memory.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn each(&self, labels: &str, each: impl FnMut(Value)) -> Result<(), ClusterError> {
        self.each_of(&self.api, labels, each).await
    }

    /// Like [`Objects::each`], the objects' metadata alone.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn each_metadata(&self, labels: &str, each: impl FnMut(Value)) -> Result<(), ClusterError> {
        self.each_of(&self.metadata, labels, each).await
    }

    /// Page by page: kube reads one page and leaves the next to its caller.
    async fn each_of<T: Clone + Debug + DeserializeOwned + Serialize>(
        &self,
        api: &Api<T>,
        labels: &str,
        mut each: impl FnMut(Value),
    ) -> Result<(), ClusterError> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = Some(labels.to_owned()).filter(|labels| !labels.is_empty());
        for _ in 0..PAGES_MAX {
            let Some(page) = answer(&self.asked("GET", ""), api.list(&params)).await? else {
                return Ok(());
            };
            for object in page.items {
                each(to_json(object)?);
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(());
            }
        }
        // Half a list would be taken for the whole.
        Err(ClusterError::Refused(format!(
            "{} has more than {} objects",
            self.path(""),
            PAGES_MAX * PAGE
        )))
    }

    /// Creates `object`. `is_dry_run`: the server checks and keeps nothing.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: there is one of that name already.
    pub async fn create(&self, object: &Value, is_dry_run: bool) -> Result<Value, ClusterError> {
        let params = post_params(is_dry_run);
        let created = answer(&self.asked("POST", ""), self.api.create(&params, &from_json(object)?)).await?;
        // A namespace that has been deleted meanwhile: nothing was made.
        let missing = || ClusterError::Refused(format!("{} does not exist", self.path("")));
        to_json(created.ok_or_else(missing)?)
    }

    /// Replaces the object `name`; the `resourceVersion` of `object` is the one that it was read with.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it has changed since.
    pub(crate) async fn replace(&self, name: &str, object: &Value) -> Result<(), ClusterError> {
        let (params, object) = (post_params(false), from_json(object)?);
        let replaced = answer(&self.asked("PUT", name), self.api.replace(name, &params, &object)).await?;
        let gone = || ClusterError::Conflict(format!("{} is gone", self.path(name)));
        replaced.map(|_| ()).ok_or_else(gone)
    }

    /// Applies the fields of `object` to the object `name`, and takes those that other managers hold. With a `resourceVersion` in
    /// it, only onto that version.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it is another version.
    pub(crate) async fn apply(&self, name: &str, object: &Value) -> Result<(), ClusterError> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object);
        let applied = answer(&self.asked("PATCH", name), self.api.patch(name, &params, &patch)).await?;
        let missing = || ClusterError::Refused(format!("{} does not exist", self.path(name)));
        applied.map(|_| ()).ok_or_else(missing)
    }

    /// Deletes the object `name` if it is still `version` (`metadata.uid` and `resourceVersion`), or in whatever version. One that
    /// is gone is fine.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`]: it has changed since.
    pub async fn delete(&self, name: &str, version: Option<&Value>) -> Result<(), ClusterError> {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let params = DeleteParams {
            preconditions: version.map(|metadata| Preconditions {
                uid: text(&metadata["uid"]),
                resource_version: text(&metadata["resourceVersion"]),
            }),
            ..DeleteParams::default()
        };
        let deleted = answer(&self.asked("DELETE", name), self.api.delete(name, &params)).await;
        deleted.map(|_| ())
    }

    /// The plural by which the API knows the kind, such as `pods`.
    pub fn plural(&self) -> &str {
        self.api.resource_url().rsplit('/').next().unwrap_or_default()
    }

    /// A request, as errors name it. `name`: empty for the list.
    fn asked(&self, method: &str, name: &str) -> String {
        format!("{method} {}", self.path(name))
    }

    fn path(&self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{}{slash}{name}", self.api.resource_url())
    }
}

fn api<T: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>>(
    client: Client,
    namespace: Option<&str>,
    kind: &ApiResource,
) -> Api<T> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, kind),
        None => Api::all_with(client, kind),
    }
}

fn post_params(dry_run: bool) -> PostParams {
    PostParams {
        dry_run,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    }
}

fn to_json(object: impl Serialize) -> Result<Value, ClusterError> {
    serde_json::to_value(object).map_err(|_| ClusterError::Refused("an object cannot be written as JSON".to_owned()))
}

fn from_json(object: &Value) -> Result<DynamicObject, ClusterError> {
    DynamicObject::deserialize(object)
        .map_err(|_| ClusterError::Refused("what is to be written is no object".to_owned()))
}

/// Whether `text` can be an object's name, so that it is safe in a path: kube writes names there as they are.
pub fn is_object_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text
            .bytes()
            .all(|byte| is_alphanumeric(&byte) || byte == b'-' || byte == b'.')
        && text.as_bytes().first().is_some_and(is_alphanumeric)
        && text.as_bytes().last().is_some_and(is_alphanumeric)
}
