import java.io.FileInputStream;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.Arrays;

/** java OpenCertificates.java CA FILE...: opens each certificate, verifies it with the CA's key, prints what it holds. */
public class OpenCertificates {
  public static void main(String[] files) throws Exception {
    CertificateFactory factory = CertificateFactory.getInstance("X.509");
    X509Certificate ca = open(factory, files[0]);
    for (String file : Arrays.copyOfRange(files, 1, files.length)) {
      X509Certificate certificate = open(factory, file);
      certificate.verify(ca.getPublicKey());
      certificate.checkValidity();
      if (!Arrays.equals(certificate.getEncoded(), Files.readAllBytes(Path.of(file)))) {
        throw new IllegalStateException(file + ": other bytes");
      }
      int names = certificate.getSubjectAlternativeNames() == null ? 0 : certificate.getSubjectAlternativeNames().size();
      certificate.getExtendedKeyUsage();
      System.out.println(Path.of(file).getFileName() + " " + names + " " + certificate.getBasicConstraints()
          + " " + certificate.getSubjectX500Principal().getName().length());
    }
  }

  private static X509Certificate open(CertificateFactory factory, String file) throws Exception {
    try (InputStream stream = new FileInputStream(file)) {
      return (X509Certificate) factory.generateCertificate(stream);
    }
  }
}
