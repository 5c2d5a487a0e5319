"""The names and signatures of systems that EmbedServe replaces, over the classes of the client."""
