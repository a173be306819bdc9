//! Which versions and key exchanges two sides agree on.

use std::sync::Arc;

use rustls::version::TLS12;
use rustls::{ClientConfig, NamedGroup};

use super::mesh::{Mesh, handshake, only};
use crate::identity::testing::{RECORDS, WEB};
use crate::tls::{
    Alpn, MinVersion, PostQuantum, Posture, cipher_name, handshake_code, peer_cert, version_name,
};

const OLD: Posture = Posture { min_version: MinVersion::Tls12, post_quantum: PostQuantum::Off };
const HYBRID: Posture = Posture { min_version: MinVersion::Tls13, post_quantum: PostQuantum::Prefer };

/// A client that speaks TLS 1.2 alone, as [`WEB`].
fn old_client(mesh: &Mesh) -> Arc<ClientConfig> {
    let settings = mesh.settings_of(WEB, OLD);
    let provider = Arc::new(OLD.provider());
    let ours = settings.client(only(RECORDS), Alpn::Either);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_cert_resolver(Arc::clone(&ours.client_auth_cert_resolver));
    let verifier =
        super::super::settings::server_verifier(settings.material(), &OLD.provider(), only(RECORDS));
    config.dangerous().set_certificate_verifier(verifier);
    config.alpn_protocols = ours.alpn_protocols.clone();
    config.require_ems = true;
    Arc::new(config)
}

/// If this fails, TLS 1.2 is spoken where nobody has asked for it.
#[tokio::test]
async fn tls_1_2_is_refused_unless_it_was_chosen() {
    let mesh = Mesh::new();
    let (client, server) = handshake(old_client(&mesh), mesh.server()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "tls_version");
    assert_eq!(handshake_code(&client.err().unwrap()), "peer_alert");
}

/// If this fails, a partner without TLS 1.3 cannot be reached, or gets in with less than is asked of others.
#[tokio::test]
async fn where_tls_1_2_was_chosen_both_sides_are_verified_all_the_same() {
    let mesh = Mesh::new();
    let old_server = mesh.settings_of(RECORDS, OLD).server();
    let (client, server) = handshake(old_client(&mesh), old_server.clone()).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let connection = server.get_ref().1;
    assert_eq!(connection.protocol_version().map(version_name), Some("1.2"));
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(cipher_name(suite), "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
    assert_eq!(peer_cert(connection).unwrap().id.as_str(), WEB);
    assert_eq!(peer_cert(client.get_ref().1).unwrap().id.as_str(), RECORDS);
    for _ in 0..2 {
        let (client, _server) = handshake(old_client(&mesh), old_server.clone()).await;
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    // Two that both know 1.3 speak it.
    let (_client, server) =
        handshake(mesh.settings_of(WEB, OLD).client(only(RECORDS), Alpn::Either), old_server.clone()).await;
    assert_eq!(server.unwrap().get_ref().1.protocol_version().map(version_name), Some("1.3"));

    let mut nobody = ClientConfig::clone(&old_client(&mesh));
    nobody.client_auth_cert_resolver = Arc::new(super::mesh::NoCertificate);
    let (_, server) = handshake(Arc::new(nobody), old_server.clone()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "no_certificate");
    let ours = mesh.settings_of(WEB, OLD).client(only(RECORDS), Alpn::Either);
    assert!(old_server.require_ems && ours.require_ems, "RFC 7627 is asked for");
}

/// If this fails, what is recorded on the wire today can be read by who has a quantum computer one day, although the operator
/// chose otherwise; or a peer without the new exchange cannot be reached.
#[tokio::test]
async fn a_hybrid_key_exchange_is_taken_where_both_sides_prefer_it() {
    let mesh = Mesh::new();
    let group = async |client: Posture, server: Posture| {
        let client = mesh.settings_of(WEB, client).client(only(RECORDS), Alpn::Either);
        let (client, server) = handshake(client, mesh.settings_of(RECORDS, server).server()).await;
        drop(client.unwrap());
        server.unwrap().get_ref().1.negotiated_key_exchange_group().unwrap().name()
    };
    assert_eq!(group(HYBRID, HYBRID).await, NamedGroup::X25519MLKEM768);
    assert_ne!(group(HYBRID, Posture::default()).await, NamedGroup::X25519MLKEM768);
    assert_ne!(group(Posture::default(), HYBRID).await, NamedGroup::X25519MLKEM768);
    assert_ne!(group(Posture::default(), Posture::default()).await, NamedGroup::X25519MLKEM768);
}
