//! Certificates of every kind, good and bad, made by the `openssl` command line and not by the code under test.

use super::gateway::Folder;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate authority with its own folder, database and revocation list.
pub(crate) struct Authority {
    folder: PathBuf,
    name: String,
}

/// A certificate and its key, in PEM files.
#[derive(Clone)]
pub(crate) struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// When a certificate is good, in openssl's own form.
const LONG_AGO: &str = "20200101000000Z";
const YESTERDAY_OF_LONG_AGO: &str = "20200102000000Z";
const FAR_AHEAD: &str = "20450101000000Z";
const FARTHER_AHEAD: &str = "20460101000000Z";

impl Authority {
    pub(crate) fn new(folder: &Folder, name: &str) -> Self {
        let authority = Self { folder: folder.path(name), name: name.to_owned() };
        std::fs::create_dir_all(&authority.folder).expect("a folder");
        authority.write("index.txt", "");
        authority.write("index.txt.attr", "unique_subject = no\n");
        authority.write("crlnumber", "1000\n");
        authority.write(
            "ca.cnf",
            "[req]\ndistinguished_name = dn\nx509_extensions = authority\nutf8 = yes\nstring_mask = utf8only\n[dn]\n\
             [authority]\nbasicConstraints = critical,CA:true\nkeyUsage = critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier = hash\n\
             [ca]\ndefault_ca = here\n[here]\ndatabase = index.txt\ncrlnumber = crlnumber\nnew_certs_dir = .\n\
             rand_serial = yes\ndefault_md = sha256\ndefault_days = 30\ndefault_crl_days = 30\npolicy = any\n\
             preserve = yes\ncertificate = ca.pem\nprivate_key = ca.key\ncrl_extensions = list\n\
             [any]\norganizationName = optional\norganizationalUnitName = optional\ncommonName = optional\n[list]\nauthorityKeyIdentifier = keyid:always\n",
        );
        let subject = format!("/O=Tests/CN={name}");
        authority.openssl(&[
            "req",
            "-x509",
            "-config",
            "ca.cnf",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
            "-subj",
            &subject,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    /// The authority's own certificate.
    pub(crate) fn pem(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// `sans` as `subjectAltName` takes them: `DNS:hooks.example.com,IP:127.0.0.1`.
    pub(crate) fn server(&self, name: &str, sans: &str) -> Pair {
        self.issue(name, &format!("/CN={name}"), "serverAuth", sans, &[])
    }

    pub(crate) fn client(&self, name: &str, sans: &str) -> Pair {
        self.client_called(name, &format!("/O=Example/CN={name}"), sans)
    }

    /// A client with a subject of its own, in openssl's `/O=…/CN=…`.
    pub(crate) fn client_called(&self, name: &str, subject: &str, sans: &str) -> Pair {
        self.issue(name, subject, "clientAuth", sans, &[])
    }

    pub(crate) fn expired_client(&self, name: &str, sans: &str) -> Pair {
        let dates = ["-startdate", LONG_AGO, "-enddate", YESTERDAY_OF_LONG_AGO];
        self.issue(name, &format!("/O=Example/CN={name}"), "clientAuth", sans, &dates)
    }

    pub(crate) fn future_client(&self, name: &str, sans: &str) -> Pair {
        let dates = ["-startdate", FAR_AHEAD, "-enddate", FARTHER_AHEAD];
        self.issue(name, &format!("/O=Example/CN={name}"), "clientAuth", sans, &dates)
    }

    fn issue(&self, name: &str, subject: &str, purpose: &str, sans: &str, dates: &[&str]) -> Pair {
        let file = |ending: &str| format!("{name}.{ending}");
        let mut extensions = format!(
            "basicConstraints = CA:false\nkeyUsage = critical,digitalSignature\nextendedKeyUsage = {purpose}\n\
             authorityKeyIdentifier = keyid\n"
        );
        if !sans.is_empty() {
            extensions.push_str(&format!("subjectAltName = {sans}\n"));
        }
        self.write(&file("ext"), &extensions);
        let (key, request, extensions, certificate) = (file("key"), file("csr"), file("ext"), file("pem"));
        self.openssl(&[
            "req",
            "-new",
            "-config",
            "ca.cnf",
            "-utf8",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        let mut arguments = vec![
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-extfile",
            &extensions,
            "-in",
            &request,
            "-out",
            &certificate,
        ];
        arguments.extend(dates);
        self.openssl(&arguments);
        Pair { certificate: self.folder.join(certificate), key: self.folder.join(key) }
    }

    pub(crate) fn revoke(&self, pair: &Pair) {
        self.openssl(&["ca", "-config", "ca.cnf", "-revoke", path(&pair.certificate)]);
    }

    /// The revocation list as it stands, with a CRL number.
    pub(crate) fn list(&self) -> PathBuf {
        self.openssl(&["ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem"]);
        self.folder.join("crl.pem")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).expect("a file");
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl").current_dir(&self.folder).args(arguments).output().expect("openssl runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}: openssl {}:\n{said}", self.name, arguments.join(" "));
    }
}

/// One line that openssl prints of a certificate: `-enddate`, `-fingerprint -sha256`, `-subject`.
pub(crate) fn x509(certificate: &Path, what: &[&str]) -> String {
    let done = Command::new("openssl")
        .args(["x509", "-noout", "-in", path(certificate)])
        .args(what)
        .output()
        .expect("openssl runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("a path of ASCII letters")
}
