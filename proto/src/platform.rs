//! Platforms: how people write them, and which of an index's manifests are for one.
//!
//! Invariant: a manifest of another operating system or architecture is never chosen.

use std::{fmt, str::FromStr};

use crate::{Descriptor, Platform};

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not os/arch, such as linux/arm64")]
pub struct ParsePlatformError(String);

impl FromStr for Platform {
    type Err = ParsePlatformError;

    /// Reads `os/arch` or `os/arch/variant`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] if !parts.contains(&"") => Ok(Self::new(os, architecture, variant)),
            _ => Err(ParsePlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Platform {
    /// Linux on this machine's processor, by the names that images use (those of Go).
    pub fn this_machine() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::new("linux", "amd64", ""),
            "aarch64" => Self::new("linux", "arm64", ""),
            "arm" => Self::new("linux", "arm", "v7"),
            "x86" => Self::new("linux", "386", ""),
            "powerpc64" => Self::new("linux", "ppc64le", ""),
            other => Self::new("linux", other, ""),
        }
    }

    fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Whether an image for `offered` runs where this platform is wanted. A variant that either leaves out is excused.
    pub fn is_met_by(&self, offered: &Self) -> bool {
        let variants = [&self.variant, &offered.variant];
        self.os == offered.os
            && self.architecture == offered.architecture
            && (variants[0] == variants[1] || variants.iter().any(|variant| variant.is_empty()))
    }

    /// The manifest for this platform; an exact variant is preferred, and a missing one excused.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let fits = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_some_and(|platform| platform.os == self.os && platform.architecture == self.architecture)
        };
        let variant = |descriptor: &&Descriptor| descriptor.platform.as_ref().map(|platform| platform.variant.clone());
        let fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
        let exact = fitting
            .iter()
            .find(|descriptor| variant(descriptor).as_deref() == Some(&self.variant));
        let lenient = fitting
            .iter()
            .find(|descriptor| self.variant.is_empty() || variant(descriptor).as_deref() == Some(""));
        exact.or(lenient).copied()
    }
}

/// The platforms of an index, as people write them.
pub fn offered_platforms(manifests: &[Descriptor]) -> Vec<String> {
    let platforms = manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref());
    platforms.map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    #[test]
    fn the_platform_of_the_machine_is_chosen() {
        let index: Vec<Descriptor> = [
            "unknown/unknown",
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
        ]
        .iter()
        .map(|text| Descriptor {
            media_type: String::new(),
            digest: Digest::of(text.as_bytes()),
            size: 1,
            platform: text.parse().ok(),
            is_foreign: false,
            data: None,
        })
        .collect();
        for (wanted, chosen) in [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/arm/v7", Some("linux/arm/v7")),
            ("linux/arm", Some("linux/arm/v6")),
            ("linux/arm64", Some("linux/arm64/v8")),
            ("linux/arm/v5", None),
            ("linux/s390x", None),
        ] {
            let wanted: Platform = wanted.parse().unwrap();
            let found = wanted.choose(&index).map(|descriptor| descriptor.digest);
            assert_eq!(
                found,
                chosen.map(|chosen: &str| Digest::of(chosen.as_bytes())),
                "{wanted}"
            );
        }
    }

    #[test]
    fn an_image_of_another_system_does_not_meet_what_is_wanted() {
        let is_met = |wanted: &str, offered: &str| {
            let [wanted, offered]: [Platform; 2] = [wanted, offered].map(|text| text.parse().unwrap());
            wanted.is_met_by(&offered)
        };
        assert!(is_met("linux/amd64", "linux/amd64") && is_met("linux/arm/v7", "linux/arm"));
        assert!(is_met("linux/arm", "linux/arm/v6"));
        for (wanted, offered) in [
            ("windows/amd64", "linux/amd64"),
            ("linux/arm64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v6"),
        ] {
            assert!(!is_met(wanted, offered), "{wanted} {offered}");
        }
    }

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for good in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(
                good.parse::<Platform>().map(|platform| platform.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in ["linux", "linux//v7", "/amd64", "linux/", "a/b/c/d", ""] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
