"""From a hospital's file to an encoded, validated, registered snapshot."""
