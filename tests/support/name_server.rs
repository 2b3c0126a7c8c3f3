//! A name server of a namespace: what `ip netns exec` starts there asks it for every name.
//!
//! A name has answers in turn, so that one and the same name may lead to another address at each lookup.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::netns::Netns;

/// By name: each lookup's addresses, again from the first after the last.
type Names = HashMap<String, (usize, Vec<Vec<Ipv4Addr>>)>;

/// A running name server. What is started in the namespace before it does not ask it.
#[derive(Debug)]
pub struct NameServer {
    names: Arc<Mutex<Names>>,
    etc: PathBuf,
}

impl NameServer {
    pub fn start(netns: &Netns) -> Self {
        let names = Arc::<Mutex<Names>>::default();
        let socket = netns
            .enter(|| UdpSocket::bind((ADDRESS, 53)))
            .expect("listening as the name server");
        let etc = Path::new("/etc/netns").join(netns.name());
        fs::create_dir_all(&etc).expect("making the namespace's /etc");
        fs::write(etc.join("resolv.conf"), format!("nameserver {ADDRESS}\n")).expect("writing resolv.conf");
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n").expect("writing hosts");
        thread::spawn({
            let names = Arc::clone(&names);
            move || serve(&socket, &names)
        });
        Self { names, etc }
    }

    /// `name` has these addresses from now on.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        self.set_in_turn(name, &[addresses]);
    }

    /// Each lookup of `name` gets the next of these lists.
    pub fn set_in_turn(&self, name: &str, turns: &[&[&str]]) {
        let parse = |turn: &&[&str]| turn.iter().map(|text| text.parse().expect("an address")).collect();
        let turns = turns.iter().map(parse).collect();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), (0, turns));
    }

    /// How often the addresses of `name` were asked for.
    pub fn lookups(&self, name: &str) -> usize {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).map_or(0, |(lookups, _)| *lookups)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // The thread ends with the process.
        let _ = fs::remove_dir_all(&self.etc);
    }
}

fn serve(socket: &UdpSocket, names: &Mutex<Names>) {
    let mut packet = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut packet) {
        let answer = answer(
            &packet[..length],
            &mut names.lock().unwrap_or_else(PoisonError::into_inner),
        );
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// Source: RFC 1035, section 4.
fn answer(query: &[u8], names: &mut Names) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while *query.get(at)? != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..end)?).to_lowercase());
        at = end;
    }
    let question = query.get(12..at + 5)?;
    let is_a = query.get(at + 1..at + 3)? == [0, 1];
    let known = names.get_mut(&labels.join("."));
    let no_such_name = u8::from(known.is_none()) * 3;
    let mut addresses = Vec::new();
    if let Some((lookups, turns)) = known.filter(|_| is_a) {
        addresses.clone_from(&turns[*lookups % turns.len()]);
        *lookups += 1;
    }
    let count = u8::try_from(addresses.len()).ok()?;
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | no_such_name, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(question);
    for address in addresses {
        // The name of the question, A, IN, no time to live.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
