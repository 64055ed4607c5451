"""What a cluster of rented machines consists of, as plain values: hosts, ports, firewall, cloud resources, costs."""
