//! Names of accelerated images: from an image to its accelerated name, and back.
//!
//! Invariant: only a name that could have been made here leads back to an image.

use piecemeal_proto::{accelerated, is_registry};

use super::image::{Image, NAME_BYTES_MAX};

/// Style of accelerated names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameStyle {
    /// By a registry of its own, which node set-up leads to the node's peer and, without it, to the registry.
    Rename,
    /// Not at all: node set-up leads the registry's own name to the peer, for every pod of the node.
    Mirror,
    /// By the peer's address and the registry as the first component of the path. Needs no node set-up, and nothing answers where
    /// there is no peer.
    Localhost,
}

/// The style, and the port of the nodes' peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    pub style: NameStyle,
    pub peer_port: u16,
}

impl Naming {
    /// The prefix that stands for `registry` in an accelerated image and in the key of its pull secret. None when it cannot be
    /// written.
    pub(crate) fn prefix(self, registry: &str) -> Option<String> {
        match self.style {
            NameStyle::Rename => accelerated::name(registry, self.peer_port),
            NameStyle::Mirror => Some(registry.to_owned()),
            NameStyle::Localhost => {
                let component = registry.replace(':', "__");
                (!registry.starts_with('[')).then(|| format!("127.0.0.1:{}/{component}", self.peer_port))
            }
        }
    }

    /// The accelerated image. None when its registry has no such name, or when no runtime would take one as long.
    pub(crate) fn accelerate(self, image: &Image) -> Option<String> {
        let name = format!("{}/{}", self.prefix(&image.registry)?, image.repository);
        (name.len() <= NAME_BYTES_MAX).then(|| format!("{name}{}", image.suffix))
    }

    /// The image that `image` stands for if it is accelerated, under whatever style and port.
    pub(crate) fn original(self, image: &Image) -> Option<Image> {
        if let Some(registry) = original_registry(&image.registry) {
            return Some(Image {
                registry,
                ..image.clone()
            });
        }
        let is_local = image.registry == format!("127.0.0.1:{}", self.peer_port);
        let (component, repository) = image.repository.split_once('/').filter(|_| is_local)?;
        let registry = component.replace("__", ":");
        is_registry(&registry).then(|| Image {
            registry,
            repository: repository.to_owned(),
            suffix: image.suffix.clone(),
        })
    }
}

/// The registry that an accelerated name with a port stands for. Only such a name as is made here: others may have a label
/// `distributed` of their own.
pub(crate) fn original_registry(name: &str) -> Option<String> {
    let port = name.rsplit_once(':')?.1.parse().ok()?;
    accelerated::original(name).find(|registry| accelerated::name(registry, port).as_deref() == Some(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naming(style: NameStyle) -> Naming {
        Naming {
            style,
            peer_port: 65001,
        }
    }

    fn accelerate(style: NameStyle, image: &str) -> Option<String> {
        naming(style).accelerate(&image.parse().unwrap())
    }

    #[test]
    fn an_image_gets_the_name_of_its_style() {
        use NameStyle::{Localhost, Mirror, Rename};
        let vendor = "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com/docker-builder/nginx:latest";
        let cases = [
            (
                Rename,
                vendor,
                "test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001/docker-builder/nginx:latest",
            ),
            (Rename, "nginx", "docker.io.piecemeal.internal:65001/library/nginx"),
            (
                Rename,
                "reg.example.com:5000/a/b:c",
                "reg.example.com.5000.piecemeal.internal:65001/a/b:c",
            ),
            (Localhost, "nginx:1", "127.0.0.1:65001/docker.io/library/nginx:1"),
            (
                Localhost,
                "reg.example.com:5000/a",
                "127.0.0.1:65001/reg.example.com__5000/a",
            ),
            (Mirror, "quay.io/a/b:c", "quay.io/a/b:c"),
        ];
        for (style, image, expected) in cases {
            assert_eq!(accelerate(style, image).as_deref(), Some(expected), "{style:?} {image}");
        }
    }

    #[test]
    fn a_name_that_no_runtime_would_take_is_not_made() {
        let long = format!("a.io/{}", "x".repeat(NAME_BYTES_MAX - 10));
        for (style, image) in [
            (NameStyle::Rename, long.as_str()),
            (NameStyle::Rename, "[::1]:5000/x"),
            (NameStyle::Localhost, "[::1]:5000/x"),
        ] {
            assert_eq!(accelerate(style, image), None, "{image}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accelerated_is_known_again(
            registry in r"[a-z0-9]{1,3}(\.[a-z0-9]{1,3}){1,4}(:[1-9][0-9]{0,3})?",
            repository in r"[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,2}",
            suffix in r"(:[a-z0-9]{1,4})?",
            localhost in any::<bool>(),
        ) {
            let naming = naming(if localhost { NameStyle::Localhost } else { NameStyle::Rename });
            let image = Image { registry, repository, suffix };
            if let Some(text) = naming.accelerate(&image) {
                prop_assert_eq!(naming.original(&text.parse().unwrap()), Some(image));
            }
        }
    }
}
