//! The folders that others write SVIDs into: each loads as it is, and each is followed in the way that it is renewed.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use common::app::App;
use common::wire::Wire;
use common::{POLICY, Pki, RECORDS, Side, WEB, eventually, in_front_of, peer, reloads};
use phiward::identity::SpiffeId;
use rustls_pki_types::UnixTime;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Certificate, key and bundle of a new issue.
fn issue(pki: &Pki) -> [String; 3] {
    let id = SpiffeId::parse(RECORDS).unwrap();
    let svid = pki.ca.issue(&id, Duration::from_secs(3000), UnixTime::now()).unwrap();
    [svid.cert_pem.to_string(), svid.key_pem.to_string(), pki.ca.cert_pem().to_owned()]
}

/// Files behind the symlink `..data`, which is swapped: how the kubelet and CSI drivers write a volume.
fn project(volume: &Path, version: &str, files: &[(&str, String)]) {
    std::fs::create_dir_all(volume.join(version)).unwrap();
    for (name, content) in files {
        std::fs::write(volume.join(version).join(name), content).unwrap();
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    symlink(version, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

/// A sidecar whose identity is these files of `volume`, certificate, key and bundle: it starts, takes up what `renew` writes, refuses
/// nothing meanwhile, and serves before and after.
async fn is_followed(files: [&str; 3], write: fn(&Path, &str, [String; 3])) {
    let pki = Pki::new();
    let dir = pki.workload("records", RECORDS);
    let volume = dir.join("volume");
    std::fs::create_dir(&volume).unwrap();
    write(&volume, "..2026_1", issue(&pki));
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    let app = App::answering(OK).await.addr;
    let [certificate, key, bundle] = files;
    let identity = format!(
        "files: {{certificate: volume/{certificate}, private_key: volume/{key}, bundle: volume/{bundle}}}"
    );
    let side = Side::start_as(dir.clone(), "records", &identity, &in_front_of(app)).await;
    let (cert, key) = peer::forged(&pki, &[WEB], (-60, 3600));
    let served = async || {
        let mut wire = Wire::new(peer::http1(side.inbound(), (&cert, &key)).await);
        wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
        wire.response("GET").await.status() == 200
    };
    assert!(served().await);
    for (count, version) in ["..2026_2", "..2026_3"].into_iter().enumerate() {
        write(&volume, version, issue(&pki));
        let taken = count as u64 + 1;
        eventually("the new SVID is in use", async || reloads(&side, "identity", "loaded").await == taken)
            .await;
        assert!(served().await);
    }
    assert_eq!(reloads(&side, "identity", "refused").await, 0);
    side.trail().await;
}

/// If this fails, pods with cert-manager's CSI driver for SPIFFE do not start, or keep their first SVID until it expires.
#[tokio::test]
async fn the_volume_of_cert_managers_csi_driver() {
    is_followed(["tls.crt", "tls.key", "ca.crt"], |volume, version, [certificate, key, bundle]| {
        project(volume, version, &[("tls.crt", certificate), ("tls.key", key), ("ca.crt", bundle)]);
    })
    .await;
}

/// If this fails, pods with spiffe-helper lose their identity at a rotation: it writes its files in place, one after another.
#[tokio::test]
async fn the_folder_of_spiffe_helper() {
    is_followed(["svid.pem", "svid_key.pem", "svid_bundle.pem"], |folder, _, [certificate, key, bundle]| {
        for (name, content) in [("svid.pem", certificate), ("svid_key.pem", key), ("svid_bundle.pem", bundle)]
        {
            std::fs::write(folder.join(name), content).unwrap();
        }
    })
    .await;
}

/// If this fails, Kubernetes' own pod certificates cannot be used: the key and the chain stand in one file, and the CAs come from a
/// ClusterTrustBundle.
#[tokio::test]
async fn the_volume_of_kubernetes_pod_certificates() {
    is_followed(
        ["credentials.pem", "credentials.pem", "ca.pem"],
        |volume, version, [certificate, key, bundle]| {
            project(volume, version, &[("credentials.pem", key + &certificate), ("ca.pem", bundle)]);
        },
    )
    .await;
}
