"""What exactly did the published code compute? For parity and comparison only; not part of the package."""
