/* Linked into the static binary for glibc: names are resolved by /etc/hosts and DNS, which are in it, whatever /etc/nsswitch.conf says.
   For anything else glibc would load a module of the machine, with a second C library of another version, and crash: seen with a binary
   of Debian 12 on Debian 13, with each of libnss-mdns, libnss-resolve and libnss-myhostname.

   Cargo does not watch this file: after a change of it, `cargo clean --release --package piecemeal --target TRIPLE`. */
#include <nss.h>

__attribute__((constructor)) static void resolve_by_what_is_built_in(void) {
    __nss_configure_lookup("hosts", "files dns");
}
