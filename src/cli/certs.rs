//! `certs`: a development CA, a server certificate and a client certificate, so that TLS and mTLS can be tried at once.
//!
//! Not for production. The CA's key is thrown away: nothing more can be issued under it.

use super::{NO, complain, say};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::fs::{OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::{Duration, OffsetDateTime};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The folder to write to; it is made if need be.
    #[arg(default_value = "certs/dev", value_name = "FOLDER")]
    folder: PathBuf,
    /// A name or address of the server; may be given several times.
    #[arg(long = "host", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    hosts: Vec<String>,
    /// The dNSName in the client's certificate.
    #[arg(long, value_name = "NAME", default_value = "sender.example.com")]
    client: String,
    /// How long they are good.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
}

/// PEM texts.
pub(super) struct Development {
    pub(super) ca: String,
    pub(super) server: (String, String),
    pub(super) client: (String, String),
}

pub(super) fn certs(arguments: &Arguments) -> ExitCode {
    let made = make(&arguments.hosts, &arguments.client, arguments.days).map_err(|error| error.to_string());
    match made.and_then(|made| write(&made, &arguments.folder, arguments.force)) {
        Ok(files) => {
            for file in files {
                say(&file.display().to_string());
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            complain(&why);
            ExitCode::from(NO)
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a certificate's dates are those of the wall clock")]
pub(super) fn make(hosts: &[String], client: &str, days: i64) -> Result<Development, rcgen::Error> {
    let now = OffsetDateTime::from(std::time::SystemTime::now());
    let params = |name: &str, sans: &[String]| -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "hookward development");
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::days(days);
        params.subject_alt_names = sans
            .iter()
            .map(|san| match san.parse() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(san.as_str().try_into()?)),
            })
            .collect::<Result<_, rcgen::Error>>()?;
        Ok(params)
    };
    let mut ca = params("hookward development CA", &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let issue = |mut params: CertificateParams, purpose| -> Result<(String, String), rcgen::Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    let name = hosts.first().map_or("localhost", String::as_str);
    Ok(Development {
        ca: ca_certificate.pem(),
        server: issue(params(name, hosts)?, ExtendedKeyUsagePurpose::ServerAuth)?,
        client: issue(params(client, &[client.to_owned()])?, ExtendedKeyUsagePurpose::ClientAuth)?,
    })
}

pub(super) fn write(made: &Development, folder: &Path, force: bool) -> Result<Vec<PathBuf>, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let files = [
        ("ca.pem", &made.ca, 0o644),
        ("server.pem", &made.server.0, 0o644),
        ("server.key", &made.server.1, 0o600),
        ("client.pem", &made.client.0, 0o644),
        ("client.key", &made.client.1, 0o600),
    ];
    // Before anything is written: half of a new set beside half of an old one belongs to nothing.
    for (name, ..) in files {
        let path = folder.join(name);
        if !force && path.symlink_metadata().is_ok() {
            return Err(format!("{} is there already; --force replaces it", path.display()));
        }
    }
    let mut written = Vec::new();
    for (name, text, mode) in files {
        let path = folder.join(name);
        let mut options = OpenOptions::new();
        options.write(true).mode(mode);
        if force {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let stored = options.open(&path).and_then(|mut file| {
            // A file that was there keeps its mode when it is opened, and it may have been anybody's to read.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())
        });
        stored.map_err(|error| format!("{}: {error}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
