//! Ports on which Zeek expects servers (`likely_server_ports`).

/// The TCP ports that the scripts of Zeek's base distribution register: FTP, SSH, SMTP, DNS, finger, HTTP,
/// Kerberos, POP3, DCE/RPC, SMB, IMAP, TLS, Modbus, SOCKS, MySQL, MQTT, RDP, SIP, XMPP, PostgreSQL, IRC, DNP3.
#[rustfmt::skip]
const LIKELY: &[u16] = &[
    21, 22, 25, 53, 79, 80, 81, 88, 110, 135, 139, 143, 443, 445, 502, 563, 585, 587, 614, 631, 636, 989, 990,
    992, 993, 995, 1080, 1434, 1883, 2811, 3128, 3306, 3389, 5060, 5222, 5223, 5269, 5432, 6666, 6667, 6668,
    6669, 8000, 8080, 8888, 20_000,
];

/// Whether a server is expected on this port.
pub(super) fn is_likely_server(port: u16) -> bool {
    LIKELY.binary_search(&port).is_ok()
}

/// Services on which people sit and think: silence of an hour is normal there
/// (`port_inactivity_timeouts` in `base/protocols/conn/inactivity.zeek`).
pub(super) const fn is_interactive(port: u16) -> bool {
    matches!(port, 21 | 22 | 23 | 513)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(LIKELY.is_sorted());
        assert!(is_likely_server(80) && !is_likely_server(40_000));
    }
}
