"""What clients and servers speak: the protocol, its generated code and the channel's settings."""
