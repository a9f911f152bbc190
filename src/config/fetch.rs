//! `[fetch]`: where keys and certificates may be fetched from, besides public addresses.

use super::reader::Table;
use super::sources::network;
use crate::fetch::Settings;

pub(super) fn read(table: &Table<'_>) -> Option<Settings> {
    let ca = table.file("ca");
    let ca_failed = table.has("ca") && ca.is_none();
    let addresses = table.all_parsed("allow_addresses", |text| {
        let network = network(text)?;
        match network.prefix_len() {
            0 => Err(format!("{text:?} is every address there is; name the network of your key server")),
            _ => Ok(network),
        }
    });
    let ports = table.ports("allow_ports");
    if !addresses.is_empty() {
        table.remark(
            "allow_addresses",
            "a name that a fetched url holds may lead to these networks: keep them to your key server's own",
            "",
        );
    }
    table.check_unknown();
    if ca_failed {
        return None;
    }
    match Settings::new(ca.as_ref().map(|(_, pem)| pem.as_slice()), addresses, ports) {
        Ok(settings) => Some(settings),
        Err(error) => {
            let path = ca.map(|(path, _)| path.display().to_string()).unwrap_or_default();
            table.error("ca", format!("{path}: {error}"), "PEM certificates of the CA");
            None
        }
    }
}
