//! `piecemeal chart keys`: makes the site's keys as Secrets. A key is never replaced, since that would shut out every node of the
//! site.

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use k8s_openapi::api::core::v1::Secret;
use piecemeal_proto::{AuthorityKey, JoinKey};
use piecemeal_webhook::Cluster;
use serde_json::{Value, json};

use crate::cli::keygen::{AUTHORITY_FILE, JOIN_FILE, new_authority};

#[derive(Args, Debug)]
pub(in crate::cli) struct KeysArgs {
    /// The namespace of the Secrets
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// The Secret for mirror and scheduler
    #[arg(long, value_name = "NAME")]
    authority_secret: String,
    /// The Secret for peers
    #[arg(long, value_name = "NAME")]
    join_secret: String,
}

pub(super) async fn run(args: &KeysArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    let authority = read::<AuthorityKey>(&cluster, args, &args.authority_secret, AUTHORITY_FILE).await?;
    let join = read::<JoinKey>(&cluster, args, &args.join_secret, JOIN_FILE).await?;
    match (authority, join) {
        (Some(authority), Some(join)) if authority.join_key().to_text() == join.to_text() => {
            say!("the site has its keys");
        }
        (Some(_), Some(_)) => bail!(
            "Secret {} is of another site than Secret {}: restore the one that belongs to the other, or delete {} to have it made again",
            args.join_secret,
            args.authority_secret,
            args.join_secret
        ),
        (Some(authority), None) => write_join(&cluster, args, &authority).await?,
        (None, Some(_)) => bail!(
            "Secret {} is there and Secret {} is lost: restore it, or delete {} to begin a new site",
            args.join_secret,
            args.authority_secret,
            args.join_secret
        ),
        (None, None) => {
            let authority = new_authority()?;
            write(
                &cluster,
                args,
                &args.authority_secret,
                AUTHORITY_FILE,
                &authority.to_text(),
            )
            .await?;
            write_join(&cluster, args, &authority).await?;
        }
    }
    Ok(())
}

async fn write_join(cluster: &Cluster, args: &KeysArgs, authority: &AuthorityKey) -> anyhow::Result<()> {
    write(
        cluster,
        args,
        &args.join_secret,
        JOIN_FILE,
        &authority.join_key().to_text(),
    )
    .await
}

async fn read<K: std::str::FromStr>(
    cluster: &Cluster,
    args: &KeysArgs,
    secret: &str,
    field: &str,
) -> anyhow::Result<Option<K>> {
    let Some(object) = cluster.objects::<Secret>(&args.namespace).get(secret).await? else {
        return Ok(None);
    };
    let key = decode(&object["data"][field]).and_then(|text| text.trim().parse().ok());
    let key = key.with_context(|| format!("Secret {secret} has no key of Piecemeal in {field}; it stays unchanged"))?;
    Ok(Some(key))
}

async fn write(cluster: &Cluster, args: &KeysArgs, name: &str, field: &str, key: &str) -> anyhow::Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": args.namespace, "labels": {"app.kubernetes.io/name": "piecemeal"}},
        "data": {field: BASE64_STANDARD.encode(key)},
    });
    cluster
        .objects::<Secret>(&args.namespace)
        .create(&secret, false)
        .await?;
    say!("Secret {name} is made");
    Ok(())
}

fn decode(value: &Value) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(value.as_str()?).ok()?).ok()
}
