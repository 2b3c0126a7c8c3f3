//! Rule for the addresses that an upstream may lead this daemon to, by a redirect or by the realm of a challenge.
//!
//! Pure: the caller passes the zone of the host that sent the URL, the name and its address, and what the administrator allows.
//! The address that is then connected to is judged, never the name alone. An IPv6 address that holds an IPv4 one counts as the
//! stricter of the two.
//!
//! Source: the IANA registries of special-purpose addresses; RFC 6052 (NAT64), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::labels::matches_labels;

/// Nearness of an address to this daemon. A host in a nearer zone may lead to all zones farther away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Zone {
    Outside,
    /// Private, unique local, or shared (100.64.0.0/10).
    Inside,
    Loopback,
}

impl Zone {
    /// The zone of a host that has answered from `address`. An address in no zone counts as outside.
    pub(crate) fn of(address: IpAddr) -> Self {
        match Place::of(address) {
            Place::In(zone) => zone,
            Place::Reserved(_) | Place::Metadata => Self::Outside,
        }
    }
}

/// The kind of an address, the strictest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    In(Zone),
    /// No registry and no storage is there.
    Reserved(&'static str),
    /// It hands a cloud's secrets to every process of the machine.
    Metadata,
}

impl Place {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => {
                let inner = inner_v4(v6).map(Self::of_v4);
                Self::of_v6(v6).max(inner.unwrap_or(Self::In(Zone::Outside)))
            }
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            [169, 254, 169, 254] | [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => Self::Metadata,
            [169, 254, ..] => Self::Reserved("a link-local address"),
            [0, ..] => Self::Reserved("no address of a host"),
            [198, 18..=19, ..] => Self::Reserved("an address for benchmarks (198.18.0.0/15)"),
            [224..=239, ..] => Self::Reserved("a multicast address"),
            [240..=255, ..] => Self::Reserved("a broadcast or reserved address"),
            [127, ..] => Self::In(Zone::Loopback),
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [192, 0, 0, _] => {
                Self::In(Zone::Inside)
            }
            _ => Self::In(Zone::Outside),
        }
    }

    /// Without a look at an IPv4 address within.
    fn of_v6(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            // AWS, GCP, Scaleway.
            [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => Self::Metadata,
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Reserved("no address of a host"),
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::In(Zone::Loopback),
            [0xfe80..=0xfebf, ..] => Self::Reserved("a link-local address"),
            [0xff00..=0xffff, ..] => Self::Reserved("a multicast address"),
            [0x100, 0, 0, 0, ..] => Self::Reserved("an address that discards"),
            // The last is a NAT64 prefix of local use, whose IPv4 address may be at several places.
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Self::In(Zone::Inside),
            _ => Self::In(Zone::Outside),
        }
    }
}

/// The IPv4 host that an IPv6 address leads to.
fn inner_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = ip.octets();
    let at = |from: usize| Ipv4Addr::new(octets[from], octets[from + 1], octets[from + 2], octets[from + 3]);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // Mapped, translated, compatible, NAT64 of both prefixes, ISATAP.
        [0, 0, 0, 0, 0, 0xffff | 0, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..]
        | [0x64, 0xff9b, 1, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(at(12)),
        // 6to4.
        [0x2002, ..] => Some(at(2)),
        // Teredo.
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!at(12).to_bits())),
        _ => None,
    }
}

/// An address in the form in which listeners are compared.
pub(crate) fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => inner_v4(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The target of a redirect or a realm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// The host as the upstream wrote it.
    pub(crate) host: &'a str,
    pub(crate) address: IpAddr,
    /// Whether a listener of this process is there.
    pub(crate) is_own: bool,
}

/// Whether an upstream in the zone `from` may lead to `target`.
///
/// # Errors
/// [`Refused`], which names the kind of the target.
pub(crate) fn judge(from: Zone, target: Target<'_>, allowed: &[AllowedTarget]) -> Result<(), Refused> {
    let names = |how: fn(&AllowedTarget) -> bool| {
        let mut fitting = allowed
            .iter()
            .filter(|allowed| allowed.fits(target.host, target.address));
        fitting.any(how)
    };
    let (named, named_alone) = (names(|_| true), names(AllowedTarget::is_single));
    let place = Place::of(target.address);
    let may = match place {
        // A network or a pattern that merely contains these does not allow them.
        _ if target.is_own => named_alone,
        Place::Metadata => named_alone,
        Place::In(Zone::Inside) => named || from >= Zone::Inside || is_known_inside(target.host),
        Place::In(zone) => named || from >= zone,
        Place::Reserved(_) => named,
    };
    if may {
        return Ok(());
    }
    Err(Refused {
        host: target.host.to_owned(),
        reason: match place {
            _ if target.is_own => "a listener of this very process",
            Place::Metadata => "a cloud's metadata service",
            Place::Reserved(reason) => reason,
            Place::In(Zone::Loopback) => "this machine itself",
            Place::In(Zone::Inside | Zone::Outside) => "inside the private network",
        },
        from: match from {
            Zone::Outside => "outside the private network or behind a proxy",
            Zone::Inside => "inside the private network",
            Zone::Loopback => "on this machine",
        },
    })
}

/// Whether an upstream in the zone `from` may lead to the host `name`, where a proxy connects to it and its address is not
/// known here.
///
/// # Errors
/// [`Refused`].
pub(crate) fn judge_name(from: Zone, name: &str, allowed: &[AllowedTarget]) -> Result<(), Refused> {
    let host = name.trim_end_matches('.');
    let stands_for = if host == "localhost" || host.ends_with(".localhost") {
        Ipv4Addr::LOCALHOST
    } else if METADATA_NAMES.contains(&host) {
        Ipv4Addr::new(169, 254, 169, 254)
    } else {
        return Ok(());
    };
    let target = Target {
        host: name,
        address: stands_for.into(),
        is_own: false,
    };
    judge(from, target, allowed)
}

const METADATA_NAMES: [&str; 3] = ["metadata", "metadata.google.internal", "instance-data"];

/// Storage that has a public name, belongs to the name's owner alone, and lies in 100.64.0.0/10.
fn is_known_inside(host: &str) -> bool {
    KNOWN_INSIDE.iter().any(|pattern| matches_labels(pattern, host))
}

/// Source: Alibaba Cloud OSS, "Regions and endpoints".
const KNOWN_INSIDE: [&str; 1] = ["*.oss-*-internal.aliyuncs.com"];

/// A target that an upstream may not lead to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host}, which is {reason}: a registry {from} may lead there only with --allow-target {host}")]
pub(crate) struct Refused {
    host: String,
    reason: &'static str,
    /// The zone that the upstream has answered from, in words.
    from: &'static str,
}

/// A target that the administrator lets upstreams lead to, whatever its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedTarget {
    /// A host, in which `*` stands for any text within a label.
    Host(String),
    /// The addresses that begin with these bits.
    Network(IpAddr, u8),
}

impl AllowedTarget {
    fn fits(&self, host: &str, address: IpAddr) -> bool {
        match self {
            Self::Host(pattern) => matches_labels(pattern, host.trim_end_matches('.')),
            Self::Network(network, bits) => [address, plain(address)]
                .into_iter()
                .any(|address| is_within(address, *network, *bits)),
        }
    }

    /// Whether it names one target, and not several.
    fn is_single(&self) -> bool {
        match self {
            Self::Host(pattern) => !pattern.contains('*'),
            Self::Network(network, bits) => *bits == width(*network),
        }
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let shift = u32::from(width(network) - bits);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0,
        _ => false,
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for AllowedTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => formatter.write_str(host),
            Self::Network(address, bits) => write!(formatter, "{address}/{bits}"),
        }
    }
}

impl FromStr for AllowedTarget {
    type Err = String;

    /// A host, an address, or a network as `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || {
            format!(
                "{text:?} is not a host such as minio.example.com or *.s3.example.com, an address, or a network such as 10.1.0.0/16"
            )
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| problem())?)),
            None => (text, None),
        };
        if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
            let bits = bits.unwrap_or(width(address));
            return (bits <= width(address))
                .then_some(Self::Network(address, bits))
                .ok_or_else(problem);
        }
        let is_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"*.-_".contains(&byte);
        let labels_are_good = text.split('.').all(|label| !label.is_empty());
        // A network's bits, a port or a lone `*` would not be read as they are meant.
        if bits.is_some() || !text.bytes().all(is_host) || !labels_are_good || text.replace(['*', '.'], "").is_empty() {
            return Err(problem());
        }
        Ok(Self::Host(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(texts: &[&str]) -> Vec<AllowedTarget> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn may(from: Zone, host: &str, address: &str, allowed: &[AllowedTarget]) -> bool {
        let target = Target {
            host,
            address: address.parse().unwrap(),
            is_own: false,
        };
        judge(from, target, allowed).is_ok()
    }

    const ZONES: [Zone; 3] = [Zone::Outside, Zone::Inside, Zone::Loopback];

    /// For each address the nearest zone that it takes to lead there; `None`: no zone is enough.
    #[test]
    fn each_address_is_led_to_from_its_own_zone_or_a_nearer_one() {
        let (outside, inside, loopback, never) = (
            Some(Zone::Outside),
            Some(Zone::Inside),
            Some(Zone::Loopback),
            None::<Zone>,
        );
        let cases = [
            ("203.0.113.9", outside),
            ("8.8.8.8", outside),
            ("100.63.255.255", outside),
            ("100.128.0.0", outside),
            ("172.15.0.1", outside),
            ("172.32.0.1", outside),
            ("198.17.255.255", outside),
            ("198.20.0.0", outside),
            ("2606:4700::1", outside),
            ("10.0.0.1", inside),
            ("172.16.0.1", inside),
            ("172.31.255.255", inside),
            ("192.168.1.1", inside),
            ("100.64.0.1", inside),
            ("100.127.255.255", inside),
            ("192.0.0.8", inside),
            ("fc00::1", inside),
            ("fd12:3456::1", inside),
            ("fec0::1", inside),
            ("127.0.0.1", loopback),
            ("127.255.255.254", loopback),
            ("::1", loopback),
            ("0.0.0.0", never),
            ("0.1.2.3", never),
            ("::", never),
            ("169.254.1.1", never),
            ("169.254.169.254", never),
            ("169.254.170.2", never),
            ("100.100.100.200", never),
            ("192.0.0.192", never),
            ("168.63.129.16", never),
            ("fd00:ec2::254", never),
            ("fd00:ec2::23", never),
            ("fd20:ce::254", never),
            ("198.18.0.5", never),
            ("198.19.255.255", never),
            ("224.0.0.1", never),
            ("239.255.255.250", never),
            ("240.0.0.1", never),
            ("255.255.255.255", never),
            ("fe80::1", never),
            ("fe80::a9fe:a9fe", never),
            ("ff02::1", never),
            ("100::1", never),
        ];
        for (address, nearest) in cases {
            for from in ZONES {
                let expected = nearest.is_some_and(|nearest| from >= nearest);
                assert_eq!(may(from, "x.io", address, &[]), expected, "{from:?} to {address}");
            }
        }
    }

    #[test]
    fn an_ipv4_address_within_an_ipv6_one_counts_as_itself() {
        let forms: [fn(Ipv4Addr) -> Ipv6Addr; 9] = [
            |v4| v4.to_ipv6_mapped(),
            |v4| Ipv6Addr::from_bits(u128::from(v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0xffff_0000 << 32 | u128::from(v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0x0064_ff9b << 96 | u128::from(v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0x2002 << 112 | u128::from(v4.to_bits()) << 80 | 1),
            |v4| Ipv6Addr::from_bits(0x2001 << 112 | u128::from(!v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0x2606_4700 << 96 | 0x5efe << 32 | u128::from(v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0x2606_4700 << 96 | 0x0200_5efe << 32 | u128::from(v4.to_bits())),
            |v4| Ipv6Addr::from_bits(0x0064_ff9b_0001 << 80 | u128::from(v4.to_bits())),
        ];
        for (index, form) in forms.into_iter().enumerate() {
            for v4 in [
                "8.8.8.8",
                "10.0.0.1",
                "100.64.0.1",
                "127.0.0.1",
                "169.254.169.254",
                "100.100.100.200",
                "0.0.0.5",
                "198.18.0.1",
                "224.0.0.1",
            ] {
                let v6 = form(v4.parse().unwrap());
                // The prefix of local use is itself inside.
                let is_local = index == 8;
                for from in ZONES {
                    let expected = may(from, "x.io", v4, &[]) && (!is_local || from >= Zone::Inside);
                    assert_eq!(may(from, "x.io", &v6.to_string(), &[]), expected, "{from:?} to {v6}");
                }
            }
        }
    }

    #[test]
    fn the_administrator_opens_what_is_named_and_no_more() {
        let cases: [(&str, &str, &str, bool); 16] = [
            ("minio.corp.test", "minio.corp.test", "10.0.0.9", true),
            ("minio.corp.test", "minio.corp.test.", "10.0.0.9", true),
            ("minio.corp.test", "x.minio.corp.test", "10.0.0.9", false),
            ("*.s3.corp.test", "b.s3.corp.test", "10.0.0.9", true),
            ("*.s3.corp.test", "a.b.s3.corp.test", "10.0.0.9", false),
            ("10.0.0.0/8", "any.test", "10.255.0.1", true),
            ("10.0.0.0/8", "any.test", "192.168.0.1", false),
            ("10.0.0.0/8", "any.test", "::ffff:10.1.1.1", true),
            ("198.18.0.0/15", "any.test", "198.18.7.7", true),
            ("127.0.0.1", "any.test", "127.0.0.1", true),
            ("fd00::/8", "any.test", "fd12::1", true),
            // What a network or a pattern holds by chance stays shut.
            ("100.64.0.0/10", "any.test", "100.100.100.200", false),
            ("0.0.0.0/0", "any.test", "169.254.169.254", false),
            ("*.corp.test", "x.corp.test", "169.254.169.254", false),
            ("169.254.169.254", "any.test", "169.254.169.254", true),
            ("meta.corp.test", "meta.corp.test", "169.254.169.254", true),
        ];
        for (named, host, address, expected) in cases {
            let allowed = allowed(&[named]);
            assert_eq!(
                may(Zone::Outside, host, address, &allowed),
                expected,
                "{named}: {host} {address}"
            );
        }
        for bad in [
            "",
            "*",
            "*.*",
            "a..b",
            "10.0.0.0/33",
            "10.0.0.0/x",
            "a.io/8",
            "https://a.io",
            "A.io",
            "a.io:80",
            "a.io.",
        ] {
            assert!(bad.parse::<AllowedTarget>().is_err(), "{bad}");
        }
        let text = "fd00::/8".parse::<AllowedTarget>().unwrap().to_string();
        assert_eq!(text, "fd00::/8");
    }

    #[test]
    fn a_daemon_s_own_listener_is_a_forbidden_target_unless_it_is_allowed_by_exact_name() {
        let own = |from: Zone, address: &str, named: &[&str]| {
            let target = Target {
                host: "mirror.corp.test",
                address: address.parse().unwrap(),
                is_own: true,
            };
            judge(from, target, &allowed(named)).is_ok()
        };
        for from in ZONES {
            for address in ["127.0.0.1", "10.0.0.2", "203.0.113.1"] {
                assert!(!own(from, address, &[]), "{address}");
                assert!(
                    !own(from, address, &["10.0.0.0/8", "127.0.0.0/8", "*.corp.test"]),
                    "{address}"
                );
                assert!(own(from, address, &["mirror.corp.test"]), "{address}");
            }
        }
        assert!(own(Zone::Outside, "10.0.0.2", &["10.0.0.2"]));
    }

    #[test]
    fn internal_storage_of_alibaba_cloud_is_reached_from_outside_and_nothing_that_looks_like_it() {
        let cases = [
            ("b.oss-cn-hangzhou-internal.aliyuncs.com", "100.118.28.45", true),
            ("b.oss-cn-hangzhou-internal.aliyuncs.com", "10.0.0.1", true),
            ("b.oss-cn-hangzhou-internal.aliyuncs.com", "100.100.100.200", false),
            ("b.oss-cn-hangzhou-internal.aliyuncs.com", "127.0.0.1", false),
            ("b.oss-cn-hangzhou.aliyuncs.com", "100.118.28.45", false),
            (
                "b.oss-cn-hangzhou-internal.aliyuncs.com.evil.io",
                "100.118.28.45",
                false,
            ),
            ("evil.io", "100.118.28.45", false),
        ];
        for (host, address, expected) in cases {
            assert_eq!(may(Zone::Outside, host, address, &[]), expected, "{host} {address}");
        }
    }

    #[test]
    fn through_a_proxy_names_of_this_machine_and_of_metadata_are_refused() {
        let cases = [
            ("localhost", Zone::Outside, false),
            ("x.localhost.", Zone::Inside, false),
            ("localhost", Zone::Loopback, true),
            ("metadata.google.internal", Zone::Loopback, false),
            ("storage.example.com", Zone::Outside, true),
            ("localhost.example.com", Zone::Outside, true),
        ];
        for (name, from, expected) in cases {
            assert_eq!(judge_name(from, name, &[]).is_ok(), expected, "{name}");
        }
        assert!(judge_name(Zone::Outside, "localhost", &allowed(&["localhost"])).is_ok());
    }

    #[test]
    fn a_refusal_names_the_host_what_is_there_and_the_setting() {
        let target = Target {
            host: "meta.evil.example",
            address: Ipv4Addr::new(169, 254, 169, 254).into(),
            is_own: false,
        };
        let refused = judge(Zone::Outside, target, &[]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "meta.evil.example, which is a cloud's metadata service: a registry outside the private network or behind a proxy may lead \
             there only with --allow-target meta.evil.example"
        );
    }
}
