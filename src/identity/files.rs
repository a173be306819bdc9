//! Identity from files: the one place of this module that reads any.
//!
//! Files are read through their path each time and compared by content, because a Kubernetes volume is swapped by a
//! symlink and spiffe-helper writes certificate, key and bundle one after another. Watching is not done here.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::UnixTime;

use super::material::{BundlePem, Material, PemFile, PemSet, material_from_pem};
use super::{IdentityError, TrustDomain};

/// The largest certificate, key or bundle file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Where the identity material lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePaths {
    /// The SVID, leaf first, then intermediates.
    pub certificate: PathBuf,
    /// The leaf's private key.
    pub private_key: PathBuf,
    /// The CA certificates of the own trust domain.
    pub bundle: BundlePaths,
    /// The CA certificates of partners.
    pub federation: Vec<(TrustDomain, BundlePaths)>,
}

/// Where the bundle of one trust domain lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundlePaths {
    /// Its CA certificates.
    pub anchors: PathBuf,
    /// What they have revoked.
    pub crl: Option<PathBuf>,
}

impl From<PathBuf> for BundlePaths {
    fn from(anchors: PathBuf) -> Self {
        Self { anchors, crl: None }
    }
}

/// The content of all files, read once, so that what was compared is what is checked.
pub struct FileContents {
    certificate: Named,
    private_key: Named,
    bundle: BundleContents,
    federation: Vec<(TrustDomain, BundleContents)>,
}

struct BundleContents {
    anchors: Named,
    crl: Option<Named>,
}

struct Named {
    name: String,
    content: Vec<u8>,
}

/// Reads the files and checks them together, as of `now`.
///
/// # Errors
/// A file that cannot be read, or the first thing that is wrong with the content.
pub fn load(paths: &FilePaths, trust_domain: &TrustDomain, now: UnixTime) -> Result<Material, IdentityError> {
    FileContents::read(paths)?.material(trust_domain, now)
}

/// A digest of what the files hold now. Equal digests mean equal content.
///
/// # Errors
/// A file that cannot be read.
pub fn digest(paths: &FilePaths) -> Result<[u8; 32], IdentityError> {
    Ok(FileContents::read(paths)?.digest())
}

impl FileContents {
    /// Reads every file once.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub fn read(paths: &FilePaths) -> Result<Self, IdentityError> {
        let federation = paths.federation.iter();
        Ok(Self {
            certificate: Named::read(&paths.certificate)?,
            private_key: Named::read(&paths.private_key)?,
            bundle: BundleContents::read(&paths.bundle)?,
            federation: federation
                .map(|(name, paths)| Ok((name.clone(), BundleContents::read(paths)?)))
                .collect::<Result<_, IdentityError>>()?,
        })
    }

    /// A digest of the content. Equal digests mean equal content.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        let bundles = std::iter::once(&self.bundle).chain(self.federation.iter().map(|(_, bundle)| bundle));
        let bundles = bundles.flat_map(|bundle| std::iter::once(&bundle.anchors).chain(&bundle.crl));
        for file in [&self.certificate, &self.private_key].into_iter().chain(bundles) {
            // The length keeps a byte that moves from one file to the next from going unnoticed.
            context.update(&(file.content.len() as u64).to_be_bytes());
            context.update(&file.content);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref()); // SHA-256 has 32 bytes
        digest
    }

    /// Checks the content, as [`material_from_pem`] does.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn material(&self, trust_domain: &TrustDomain, now: UnixTime) -> Result<Material, IdentityError> {
        let set = PemSet {
            certificate: self.certificate.pem(),
            private_key: self.private_key.pem(),
            bundle: self.bundle.pem(),
            federation: self.federation.iter().map(|(name, file)| (name, file.pem())).collect(),
        };
        material_from_pem(&set, trust_domain, now)
    }
}

impl BundleContents {
    fn read(paths: &BundlePaths) -> Result<Self, IdentityError> {
        Ok(Self {
            anchors: Named::read(&paths.anchors)?,
            crl: paths.crl.as_deref().map(Named::read).transpose()?,
        })
    }

    fn pem(&self) -> BundlePem<'_> {
        BundlePem { anchors: self.anchors.pem(), crl: self.crl.as_ref().map(Named::pem) }
    }
}

impl Named {
    fn read(path: &Path) -> Result<Self, IdentityError> {
        Ok(Self { name: path.display().to_string(), content: read_file(path)? })
    }

    fn pem(&self) -> PemFile<'_> {
        PemFile { name: &self.name, text: &self.content }
    }
}

/// Reads one certificate or key file.
///
/// # Errors
/// [`IdentityError::Read`], or [`IdentityError::TooLarge`] above [`MAX_FILE_BYTES`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
    match read {
        Err(source) => Err(IdentityError::Read { path: path.to_owned(), source }),
        Ok(length) if length as u64 > MAX_FILE_BYTES => {
            Err(IdentityError::TooLarge { path: path.to_owned() })
        }
        Ok(_) => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Forge, NOW, WEB, domain, now};
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn paths(dir: &Path) -> FilePaths {
        let path = |name: &str| dir.join(name);
        let federation = vec![(domain("partner.example"), path("partner.pem").into())];
        FilePaths {
            certificate: path("svid.pem"),
            private_key: path("svid.key"),
            bundle: path("bundle.pem").into(),
            federation,
        }
    }

    fn write(dir: &Path, ca: &Forge, partner: &Forge) {
        let leaf = ca.leaf(|_| {});
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("svid.pem"), leaf.cert.pem()).unwrap();
        fs::write(dir.join("svid.key"), &leaf.key_pem).unwrap();
        fs::write(dir.join("bundle.pem"), ca.cert.pem()).unwrap();
        fs::write(dir.join("partner.pem"), partner.cert.pem()).unwrap();
    }

    /// If this fails, a rotation by Kubernetes (a new directory and a swapped symlink) is not noticed or not loaded.
    #[test]
    fn a_symlink_swap_changes_the_digest_and_loads() {
        let dir = TempDir::new().unwrap();
        let (ca, partner) = (Forge::new(NOW), Forge::new(NOW));
        write(&dir.path().join("v1"), &ca, &partner);
        write(&dir.path().join("v2"), &ca, &partner);
        let current = dir.path().join("current");
        symlink("v1", &current).unwrap();
        let (paths, own) = (paths(&current), domain("hospital.local"));
        let first = digest(&paths).unwrap();
        let material = load(&paths, &own, now()).unwrap();
        assert_eq!(material.svid.id().as_str(), WEB);
        assert!(material.bundles.get("partner.example").is_some());
        assert_eq!(digest(&paths).unwrap(), first, "unchanged content");

        symlink("v2", dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), &current).unwrap();
        assert_ne!(digest(&paths).unwrap(), first);
        let rotated = load(&paths, &own, now()).unwrap();
        assert_ne!(rotated.svid.leaf_sha256_hex(), material.svid.leaf_sha256_hex());
    }

    /// If this fails, a change that only moves bytes between the files is taken for no change.
    #[test]
    fn the_digest_knows_where_one_file_ends() {
        let dir = TempDir::new().unwrap();
        let paths = paths(dir.path());
        let write_four = |contents: [&str; 4]| {
            for (name, content) in ["svid.pem", "svid.key", "bundle.pem", "partner.pem"].iter().zip(contents)
            {
                fs::write(dir.path().join(name), content).unwrap();
            }
            digest(&paths).unwrap()
        };
        let digests = [["ab", "c", "", ""], ["a", "bc", "", ""], ["", "", "ab", "c"], ["", "", "a", "bc"]]
            .map(write_four);
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[at + 1..].contains(digest), "{at}");
        }
    }

    /// If this fails, a missing file is an error without a name, or a huge one fills the memory.
    #[test]
    fn unreadable_and_huge_files_are_refused_by_name() {
        let dir = TempDir::new().unwrap();
        let missing = read_file(&dir.path().join("none.pem")).unwrap_err();
        assert_eq!(missing.code(), "file_unreadable");
        assert!(missing.to_string().contains("none.pem"), "{missing}");
        let huge = dir.path().join("huge.pem");
        File::create(&huge).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert_eq!(read_file(&huge).unwrap_err().code(), "file_too_large");
    }
}
