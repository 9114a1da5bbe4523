import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Set;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLHandshakeException;
import javax.net.ssl.TrustManagerFactory;

/**
 * Asks certmill for a certificate: java Issue.java PROFILE REQUEST.csr CERTIFICATE.pem (Java 11 or newer, nothing else).
 *
 * <p>CERTMILL_CLIENT_URL and _CA (PEM) as everywhere; _P12 and _P12_PASSWORD instead of certificate and key: openssl
 * pkcs12 -export -in cert.pem -inkey key.pem -out client.p12. Exit code 0: here it is; 1: refused; 75: try later, with
 * the same command.
 */
public class Issue {
    private static final Set<Integer> LATER = Set.of(429, 502, 503, 504);
    private static final int ATTEMPTS = 6;

    public static void main(String[] args) throws Exception {
        String profile = args[0];
        Path csr = Path.of(args[1]), out = Path.of(args[2]);

        // One key for one certificate. It is kept until the certificate is here, so that whoever runs this again after
        // whatever happened gets the same certificate, never a second one.
        Path kept = Path.of(out + ".idempotency-key");
        if (Files.notExists(kept)) {
            Files.writeString(kept, UUID.randomUUID().toString());
        }

        HttpClient http = HttpClient.newBuilder()
                .sslContext(tls())
                .version(HttpClient.Version.HTTP_1_1)
                .connectTimeout(Duration.ofSeconds(10))
                .build();
        HttpRequest request = HttpRequest.newBuilder()
                .uri(URI.create(System.getenv("CERTMILL_CLIENT_URL") + "/v1/certificates?profile=" + profile))
                .header("Content-Type", "application/pkcs10") // PKCS #10 in, PEM chain out: no JSON library is needed
                .header("Idempotency-Key", Files.readString(kept))
                .timeout(Duration.ofSeconds(40))
                .POST(HttpRequest.BodyPublishers.ofFile(csr))
                .build();

        for (int attempt = 1; attempt <= ATTEMPTS; attempt++) {
            long pauseS = attempt;
            try {
                HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
                if (answer.statusCode() == 201) {
                    Files.writeString(out, answer.body());
                    Files.delete(kept);
                    return;
                }
                if (!LATER.contains(answer.statusCode())) {
                    System.err.println(problem(answer));
                    System.exit(1);
                }
                pauseS = answer.headers().firstValueAsLong("Retry-After").orElse(pauseS); // as long as certmill asks for
            } catch (SSLHandshakeException error) {
                throw error; // a certificate is wrong: no repetition mends it
            } catch (IOException error) {
                System.err.println("no answer: " + error + "; trying again");
            }
            Thread.sleep(pauseS * 1000);
        }
        System.exit(75);
    }

    /** Present the certificate in the PKCS #12 file, and trust the CA's root alone. */
    private static SSLContext tls() throws Exception {
        char[] password = System.getenv("CERTMILL_CLIENT_P12_PASSWORD").toCharArray();
        KeyStore own = KeyStore.getInstance("PKCS12");
        try (var file = Files.newInputStream(Path.of(System.getenv("CERTMILL_CLIENT_P12")))) {
            own.load(file, password);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(own, password);

        KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        try (var file = Files.newInputStream(Path.of(System.getenv("CERTMILL_CLIENT_CA")))) {
            roots.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(roots);

        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    /** One line of problem details (RFC 9457). With a JSON library at hand, use that. */
    private static String problem(HttpResponse<String> answer) {
        String line = "HTTP " + answer.statusCode();
        for (String member : new String[] {"type", "field", "detail", "remedy", "instance"}) {
            Matcher found = Pattern.compile("\"" + member + "\":\\s*\"((?:[^\"\\\\]|\\\\.)*)\"").matcher(answer.body());
            line += found.find() ? "; " + member + ": " + found.group(1) : "";
        }
        return line;
    }
}
