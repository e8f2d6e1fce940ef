"""From a federation.yaml to what every host needs: a certificate authority, certificates, and a kit per site and server."""
