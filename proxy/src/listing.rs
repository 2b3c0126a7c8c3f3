//! Listing a repository: fetches the pages of its lists from upstream and puts each list together.
//!
//! A list is put together as a whole, and its tags are sorted: one trip over the WAN serves a crowd of callers, whatever pages they ask for;
//! registries that ignore `n` and `last`, or sort in another way, do not break a client's paging; and the list is there while the WAN is
//! not. `PAGES_MAX` and `LIST_BYTES_MAX` bound it.

use std::{collections::BTreeSet, sync::Arc};

use piecemeal_proto::{Digest, Reference};
use piecemeal_store::Repository;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;
use url::Url;

use crate::{
    Item, List, Right,
    lists::{Index, Referrers, Tagged},
    manifests::Manifests,
};
use piecemeal_upstream::{Caller, ListAnswer, Note, PullError};

/// Page size of requests to upstream, in tags: some registries refuse more.
const PAGE_TAGS: usize = 1000;
/// The same when only the caller's right is in question.
const PROOF_TAGS: usize = 1;
/// The most pages of one list: a million tags.
const PAGES_MAX: usize = 1000;
/// The most bytes of all its pages together.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most tags that are sent when a client does not say how many it wants, or too many.
const TAGS_MAX: usize = 100_000;

/// The pages of one list so far.
#[derive(Default)]
struct Pages {
    count: usize,
    bytes: usize,
}

impl Pages {
    fn add(&mut self, at: &Repository, page: &ListAnswer) -> Result<(), PullError> {
        self.count += 1;
        self.bytes += page.bytes.len();
        if self.count > PAGES_MAX || self.bytes > LIST_BYTES_MAX {
            return Err(PullError::BadGateway(format!(
                "a list of {} has more than {PAGES_MAX} pages or {LIST_BYTES_MAX} bytes: ask {} for it page by page",
                at.name, at.upstream
            )));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct TagsAnswer {
    /// Some registries say `null` for none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactType {
    artifact_type: Option<String>,
}

impl Manifests {
    pub(crate) async fn tags(
        &self,
        caller: &Caller,
        at: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<List, PullError> {
        let known = self
            .lists
            .get(at, self.tag_ttl.get())
            .filter(|_| self.access.allows(caller, at));
        let (tags, note) = match known {
            Some(tags) => (tags, Note::default()),
            None => match self.listed_tags(caller, at).await {
                Ok(tagged) => tagged,
                Err(error) if error.is_verdict() => return Err(error),
                Err(error) => self.tags_here(caller, at, error).await?,
            },
        };
        Ok(List {
            note,
            ..page(&tags, n, last)
        })
    }

    /// Put together once for all callers that ask for it now. One that the source has not answered itself shows its right first.
    async fn listed_tags(&self, caller: &Caller, at: &Repository) -> Result<Tagged, PullError> {
        let prove = async || {
            let path = format!("tags/list?n={PROOF_TAGS}");
            self.source.list(caller, at, &path).await.map(drop)
        };
        let manifests = self.clone();
        let work = move |right: Right| {
            let manifests = manifests.clone();
            async move {
                let Right { at, caller } = &right;
                let is_served = manifests.access.allows(caller, at);
                let tags = manifests.all_tags(caller, at);
                manifests.lists.bounded(&right, is_served, tags).await
            }
        };
        let joined = self
            .lists
            .running
            .join(at.clone(), self.boarding(caller, at), work, prove);
        let landed = joined.await?;
        if !landed.own && !self.access.allows(caller, at) {
            prove().await?;
        }
        Ok(landed.value)
    }

    async fn all_tags(&self, caller: &Caller, at: &Repository) -> Result<Tagged, PullError> {
        let (mut tags, mut note, mut pages) = (BTreeSet::new(), Note::default(), Pages::default());
        let mut path = Some(format!("tags/list?n={PAGE_TAGS}"));
        while let Some(asked) = path {
            let answer = self.source.list(caller, at, &asked).await?;
            pages.add(at, &answer)?;
            let read: TagsAnswer = read(at, &answer.bytes)?;
            let before = tags.len();
            tags.extend(read.tags.unwrap_or_default());
            note = note.and(answer.note.clone());
            // A page that brings nothing new would be followed for ever.
            path = next_path(&answer, "tags/list").filter(|_| tags.len() > before);
        }
        let tags = Arc::new(tags.into_iter().collect::<Vec<_>>());
        if !note.is_stale {
            self.lists.put(at, Arc::clone(&tags));
        }
        Ok((tags, note))
    }

    /// The tags that are known here, for a caller that may pull one of them.
    async fn tags_here(&self, caller: &Caller, at: &Repository, error: PullError) -> Result<Tagged, PullError> {
        let tags = self.store.tags(at).await?;
        let Some(first) = tags.first() else {
            return Err(error);
        };
        let Some(known) = self.store.tag(at, first).await? else {
            return Err(error);
        };
        self.access.require(caller, at, Item::Manifest(&known.digest)).await?;
        warn!(upstream = at.upstream, repository = at.name, %error, "listing the tags that are here: {error}");
        Ok((Arc::new(tags), super::manifests::stale(&error)))
    }

    pub(crate) async fn referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<List, PullError> {
        let key = (Right::new(caller, at), *subject, artifact_type.map(str::to_owned));
        let manifests = self.clone();
        let (of_subject, of_type) = (*subject, artifact_type.map(str::to_owned));
        let work = move |right| {
            let (manifests, of_type) = (manifests.clone(), of_type.clone());
            async move { manifests.all_referrers(right, of_subject, of_type.as_deref()).await }
        };
        // All of a flight have the same right: what is said to one is said to each.
        let prove = std::future::pending::<Result<(), PullError>>;
        let joined = self.lists.referring.join(key, self.boarding(caller, at), work, prove);
        let (mut index, filtered, note) = joined.await?.value;
        if let Some(wanted) = artifact_type.filter(|_| !filtered) {
            index
                .manifests
                .retain(|descriptor| artifact_type_of(descriptor).as_deref() == Some(wanted));
        }
        let referrers = serde_json::to_vec(&index).map_err(|error| PullError::BadGateway(error.to_string()))?;
        Ok(List {
            referrers: Some(referrers),
            filtered: artifact_type.is_some(),
            note,
            ..List::default()
        })
    }

    async fn all_referrers(
        &self,
        right: Right,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, PullError> {
        let Right { at, caller } = &right;
        let listed = self.listed_referrers(caller, at, &subject, artifact_type);
        let is_served = self.access.allows(caller, at);
        match self.lists.bounded(&right, is_served, listed).await {
            // Such a registry knows no lists of referrers: clients keep them under a tag.
            Err(PullError::Unknown(_)) => self.tagged_referrers(caller, at, &subject).await,
            listed => listed,
        }
    }

    async fn listed_referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Referrers, PullError> {
        let resource = format!("referrers/{subject}");
        let query = artifact_type.map(|wanted| {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("artifactType", wanted).finish()
        });
        let mut path = Some(query.map_or(resource.clone(), |query| format!("{resource}?{query}")));
        let mut index = Index::empty();
        let (mut filtered, mut note, mut pages) = (artifact_type.is_some(), Note::default(), Pages::default());
        while let Some(asked) = path {
            let answer = self.source.list(caller, at, &asked).await?;
            pages.add(at, &answer)?;
            let read: Index = read(at, &answer.bytes)?;
            path = next_path(&answer, &resource).filter(|_| !read.manifests.is_empty());
            index.manifests.extend(read.manifests);
            filtered &= is_filtered(&answer);
            note = note.and(answer.note);
        }
        Ok((index, filtered, note))
    }

    /// Source: the specification's "Referrers Tag Schema".
    async fn tagged_referrers(
        &self,
        caller: &Caller,
        at: &Repository,
        subject: &Digest,
    ) -> Result<Referrers, PullError> {
        let subject = subject.to_string();
        let (algorithm, hex) = subject.split_once(':').unwrap_or_default();
        let tag = format!("{:.32}-{:.64}", algorithm, hex);
        let found = self.manifest(caller, at, &Reference::Tag(tag)).await;
        match found {
            Ok(manifest) => Ok((read(at, &manifest.bytes)?, false, manifest.note)),
            Err(PullError::Unknown(_)) => Ok((Index::empty(), false, Note::default())),
            Err(error) => Err(error),
        }
    }
}

/// Whether the registry has filtered by the type: it may have applied another filter.
fn is_filtered(answer: &ListAnswer) -> bool {
    let filters = answer.filters.as_deref().unwrap_or_default();
    filters.split(',').any(|filter| filter.trim() == "artifactType")
}

fn artifact_type_of(descriptor: &RawValue) -> Option<String> {
    let read: Option<ArtifactType> = serde_json::from_str(descriptor.get()).ok();
    read?.artifact_type
}

fn read<'a, T: Deserialize<'a>>(at: &Repository, bytes: &'a [u8]) -> Result<T, PullError> {
    serde_json::from_slice(bytes)
        .map_err(|error| PullError::BadGateway(format!("{} sent a list that cannot be read: {error}", at.upstream)))
}

/// The path of the next page. Of upstream's own `Link` only the query counts: it leads nowhere else.
fn next_path(answer: &ListAnswer, resource: &str) -> Option<String> {
    let links = links(answer.next.as_deref()?);
    let (target, _) = links.into_iter().find(|(_, parameters)| is_next(parameters))?;
    // Relative to anything: the host does not count.
    let url = Url::parse("http://registry.invalid/").ok()?.join(target).ok()?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(url.query_pairs().filter(|(key, _)| key != "ns"));
    Some(format!("{resource}?{}", query.finish()))
}

/// The links of a list, each with its target and its parameters. Source: RFC 8288, section 3.
fn links(list: &str) -> Vec<(&str, &str)> {
    let (mut links, mut rest) = (Vec::new(), list);
    while let Some((target, after)) = rest.split_once('<').and_then(|(_, link)| link.split_once('>')) {
        let mut is_quoted = false;
        let end = after.find(|character| {
            is_quoted ^= character == '"';
            character == ',' && !is_quoted
        });
        let (parameters, next) = after.split_at(end.unwrap_or(after.len()));
        links.push((target, parameters));
        rest = next;
    }
    links
}

/// Whether a link with these parameters leads to the next page.
fn is_next(parameters: &str) -> bool {
    let mut is_quoted = false;
    let mut parameters = parameters.split(|character| {
        is_quoted ^= character == '"';
        character == ';' && !is_quoted
    });
    parameters.any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        let mut relations = value.trim().trim_matches('"').split_whitespace();
        name.trim().eq_ignore_ascii_case("rel") && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

/// At most `n` tags after `last`.
fn page(tags: &[String], n: Option<usize>, last: Option<&str>) -> List {
    let first = last.map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let rest = &tags[first..];
    let count = n.unwrap_or(usize::MAX).min(TAGS_MAX).min(rest.len());
    let next = (count > 0 && count < rest.len()).then(|| rest[count - 1].clone());
    List {
        tags: rest[..count].to_vec(),
        next,
        ..List::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_after_the_last_tag_and_end_without_a_next() {
        let tags = ["a", "b", "c", "d"].map(str::to_owned);
        type Case<'a> = (Option<usize>, Option<&'a str>, &'a [&'a str], Option<&'a str>);
        let cases: [Case<'_>; 8] = [
            (None, None, &["a", "b", "c", "d"], None),
            (Some(2), None, &["a", "b"], Some("b")),
            (Some(2), Some("b"), &["c", "d"], None),
            (Some(0), None, &[], None),
            (Some(10_000), Some("c"), &["d"], None),
            (None, Some("bb"), &["c", "d"], None),
            (None, Some("d"), &[], None),
            (Some(usize::MAX), Some(""), &["a", "b", "c", "d"], None),
        ];
        for (n, last, expected, next) in cases {
            let page = page(&tags, n, last);
            assert_eq!(page.tags, expected, "{n:?} {last:?}");
            assert_eq!(page.next.as_deref(), next, "{n:?} {last:?}");
        }
    }

    #[test]
    fn a_link_leads_to_the_same_list_only() {
        let answer = |link: &str| ListAnswer {
            bytes: Vec::new().into(),
            next: Some(link.to_owned()),
            filters: None,
            note: Note::default(),
        };
        let cases = [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("tags/list?n=2&last=b"),
            ),
            (
                r"<https://evil.io/x?last=b&ns=evil.io>; rel=next",
                Some("tags/list?last=b"),
            ),
            (r#"<?n=2&last=x%26y>; rel="next""#, Some("tags/list?n=2&last=x%26y")),
            (r#"</v2/a/tags/list?n=2>; rel="prev""#, None),
            ("nonsense", None),
            // Several links, of several fields or of one.
            (
                r#"</v2/a/tags/list?n=1&last=a>; rel="prev", </v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("tags/list?n=2&last=b"),
            ),
            (
                r#"<?last=a,b>; REL=Next, <?last=c>; rel="last""#,
                Some("tags/list?last=a%2Cb"),
            ),
            (
                r#"<?last=a>; title="b, <?last=c>; rel=next", <?last=d>; rel="prev next""#,
                Some("tags/list?last=d"),
            ),
            (r#"<?last=a>; title="rel=next""#, None),
            (r#"<?last=a>; rel="nextish", <"#, None),
        ];
        for (link, path) in cases {
            assert_eq!(next_path(&answer(link), "tags/list").as_deref(), path, "{link}");
        }
    }
}
